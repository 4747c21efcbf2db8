"""What an operator token may allow. Pure."""

from collections.abc import Collection
from enum import StrEnum


class Scope(StrEnum):
    """One right each; `admin` holds all of them."""

    REGISTRY_READ = "registry:read"
    REGISTRY_PUBLISH = "registry:publish"
    REGISTRY_ADMIN = "registry:admin"
    FLEET_READ = "fleet:read"
    FLEET_WRITE = "fleet:write"
    TELEMETRY_READ = "telemetry:read"
    ADMIN = "admin"


def grants(held: Collection[str], needed: str) -> bool:
    """Whether somebody with these scopes may do what needs that one."""
    return Scope.ADMIN in held or needed in held
