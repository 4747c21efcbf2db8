"""How lists of the API are cut into pages: by cursor, so that pages stay stable while rows are added."""

from typing import Any

from rest_framework.pagination import CursorPagination


class NewestFirst(CursorPagination):
    """Newest first by `created_at`, or by what the view names in `ordering`; `?limit=` up to 500 per page."""

    page_size = 50
    page_size_query_param = "limit"
    max_page_size = 500
    ordering = ("-created_at", "-pk")

    def get_ordering(self, request: Any, queryset: Any, view: Any) -> tuple[str, ...]:
        """The view's own order if it has one."""
        self.ordering = getattr(view, "ordering", None) or self.ordering
        return tuple(super().get_ordering(request, queryset, view))
