"""Static files under ASGI. WhiteNoise answers with a blocking file, which Django would read whole with a warning."""

from typing import Any

from django.core.handlers.asgi import ASGIRequest
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from whitenoise.middleware import WhiteNoiseMiddleware


class StaticFilesMiddleware(WhiteNoiseMiddleware):
    """WhiteNoise, with whole bodies where the server is asynchronous: static files are small."""

    @staticmethod
    def serve(static_file: Any, request: HttpRequest) -> HttpResponseBase:
        """The file, a 304, or what else WhiteNoise decides."""
        response = WhiteNoiseMiddleware.serve(static_file, request)
        if not isinstance(request, ASGIRequest):
            return response
        body = b"".join(response.streaming_content)
        response.close()
        return HttpResponse(body, status=response.status_code, headers=dict(response.items()))
