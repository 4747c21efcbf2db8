"""The bases of all request bodies and queries: a field that nobody knows is refused, never dropped in silence."""

from typing import Any

from rest_framework import serializers
from rest_framework.request import Request

from registry.serializers import StrictSerializer


class PageQuery(StrictSerializer):
    """Query of a list that comes in pages; `fleet.pagination` reads the two."""

    limit = serializers.IntegerField(min_value=1, max_value=500, required=False)
    cursor = serializers.CharField(max_length=500, required=False)


def validated(serializer: type[StrictSerializer], data: Any) -> dict[str, Any]:
    """The values of a body or a query; raises DRF's `ValidationError`."""
    bound = serializer(data=data)
    bound.is_valid(raise_exception=True)
    return bound.validated_data


def page_filters(serializer: type[PageQuery], request: Request) -> dict[str, Any]:
    """The validated query without what only concerns pages."""
    values = validated(serializer, request.query_params)
    return {name: value for name, value in values.items() if name not in ("limit", "cursor")}
