"""The base of all request bodies: a field that nobody knows is refused, never dropped in silence."""

from typing import Any

from rest_framework import serializers


class StrictSerializer(serializers.Serializer[Any]):
    """A serializer that names unknown fields instead of ignoring them."""

    def to_internal_value(self, data: Any) -> Any:
        """The validated values, unless the body holds a field that this serializer does not."""
        if isinstance(data, dict) and (unknown := sorted(set(map(str, data)) - set(self.fields))):
            known = ", ".join(name for name, field in self.fields.items() if not field.read_only)
            raise serializers.ValidationError({name: [f"Unknown field. Known are: {known}."] for name in unknown})
        return super().to_internal_value(data)
