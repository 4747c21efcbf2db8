"""How values read on a page: states, sizes, times, digests, and links that keep the rest of the address."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from django import template
from django.templatetags.static import static
from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from fleet.dashboard.looks import LOOKS, look_of
from registry.models import Publication
from registry.states import PublicationState

register = template.Library()

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_AGES = ((90, 1, "s"), (5400, 60, "min"), (172_800, 3600, "h"))


@register.simple_tag
def icon(name: str, extra_class: str = "") -> SafeString:
    """A symbol of icons.svg; a word beside it carries the meaning."""
    return format_html(
        '<svg class="icon {}" width="16" height="16" aria-hidden="true"><use href="{}#{}"/></svg>',
        extra_class,
        static("dashboard/icons.svg"),
        name,
    )


@register.simple_tag
def badge(family: str, state: str) -> SafeString:
    """A state by colour, icon and word."""
    look = look_of(family, state)
    return format_html('<span class="badge {}">{}{}</span>', look.tone, icon(look.icon), look.word)


@register.simple_tag
def look(family: str, state: str) -> Any:
    """The parts of a state's look, for templates that arrange them otherwise."""
    return look_of(family, state)


@register.filter
def commands(text: str) -> SafeString:
    """Words as they are, with what stands between backticks set as code."""
    parts = [format_html("<code>{}</code>" if place % 2 else "{}", part) for place, part in enumerate(text.split("`"))]
    return format_html_join("", "{}", ((part,) for part in parts))


@register.filter
def size(num_bytes: float | None) -> str:
    """Bytes in the largest binary unit that leaves a number of at least 1."""
    if num_bytes is None:
        return "–"
    value, place = float(num_bytes), 0
    while value >= 1024 and place < len(_UNITS) - 1:
        value, place = value / 1024, place + 1
    return f"{value:.0f} {_UNITS[place]}" if place == 0 or value >= 100 else f"{value:.1f} {_UNITS[place]}"


@register.filter
def ago(moment: datetime | None) -> str | SafeString:
    """How long ago, with the exact time on hover and for machines."""
    if moment is None:
        return "never"
    exact = timezone.localtime(moment)
    return format_html(
        '<time datetime="{}" title="{}">{}</time>',
        exact.isoformat(timespec="seconds"),
        f"{exact:%Y-%m-%d %H:%M:%S %Z}",
        ago_words(moment),
    )


def ago_words(moment: datetime) -> str:
    """The time since then in the unit that reads best."""
    seconds = (timezone.now() - moment).total_seconds()
    if seconds < 2:
        return "just now"
    for below, unit_s, name in _AGES:
        if seconds < below:
            return f"{seconds / unit_s:.0f} {name} ago"
    return f"{seconds / 86_400:.0f} d ago"


@register.filter
def digest(sha256: str) -> SafeString:
    """The first characters of a digest, the whole of it on hover."""
    return format_html('<code title="{}">{}</code>', sha256, sha256[:12])


@register.simple_tag
def segments(family: str, counts: Mapping[str, int]) -> list[dict[str, Any]]:
    """Counts per state as the parts of one bar: look, count, where the part begins and how long it is, in percent."""
    total = sum(counts.values())
    parts, offset = [], 0.0
    for state in LOOKS[family]:
        if count := counts.get(state, 0):
            width = 100 * count / total
            parts.append(
                {"look": look_of(family, state), "count": count, "x": f"{offset:.3f}", "width": f"{width:.3f}"}
            )
            offset += width
    return parts


@register.simple_tag(takes_context=True)
def address(context: template.Context, **changes: Any) -> str:
    """This page's query string with some parameters changed; None takes one away. The page number starts anew."""
    query = context["request"].GET.copy()
    query.pop("page", None)
    for name, value in changes.items():
        if value in (None, ""):
            query.pop(name, None)
        else:
            query[name] = str(value)
    return f"?{query.urlencode()}"


@register.filter
def percent(share: float) -> str:
    """A share from 0 to 1 in percent."""
    return f"{100 * share:.0f} %"


@register.filter
def milliseconds(value: float | None) -> str:
    """Milliseconds with as many digits as people can use."""
    if value is None:
        return "–"
    return f"{value:.1f} ms" if value < 10 else f"{value:,.0f} ms"


@register.filter
def joined(values: Iterable[Any]) -> str:
    """A list in words."""
    return ", ".join(map(str, values))


@register.filter
def item(mapping: Mapping[str, Any], key: str) -> Any:
    """A mapping's value by a key that the template computes; 0 if it is not there."""
    return mapping.get(key, 0)


@register.filter
def words(name: str) -> str:
    """A machine's name for something, as words."""
    return str(name).replace("_", " ").capitalize()


@register.filter
def share(publication: Publication) -> float:
    """How far a publication has come in its present state, 0 to 1: bytes while they arrive, work after that."""
    if publication.state == PublicationState.UPLOADING and publication.upload:
        return publication.upload.offset_bytes / max(publication.upload.size_bytes, 1)
    return publication.progress


@register.filter
def facts(report: Mapping[str, Any], place: str = "") -> list[tuple[str, Any]]:
    """A nested report as (name, value) lines."""
    lines: list[tuple[str, Any]] = []
    for key, value in report.items():
        name = f"{place} {words(key).lower()}" if place else words(key)
        lines += facts(value, name) if isinstance(value, Mapping) else [(name, _fact(value))]
    return lines


def _fact(value: Any) -> str:
    match value:
        case None | "" | []:
            return "–"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:.4g}"
        case list():
            return ", ".join(map(str, value))
        case _:
            return str(value)
