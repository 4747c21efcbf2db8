"""Private keys in files: Ed25519, PKCS8 PEM, encrypted with a passphrase. They are in no database and no log.

A key's public half may lie in a file of its own (PEM, not encrypted), for its keeper to give away.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Collection
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from django.conf import settings
from securesystemslib.signer import CryptoSigner, Key, SSlibKey

from registry.errors import RegistryError

ONLINE_ROLES = ("snapshot", "timestamp", "desired")
"""What the running service signs by itself; `desired` is no TUF role: the policy names its keys."""


class KeyUnusableError(RegistryError):
    """A private key or its passphrase is not there, or they do not belong together."""

    code = "key_unusable"
    title = "The key can't be used"
    default_hint = "Name the key's file, and the file with its passphrase."


def make_key(path: Path, passphrase: bytes) -> CryptoSigner:
    """A new key in a file that only its owner can read; raises `KeyUnusableError` rather than replace one."""
    private = Ed25519PrivateKey.generate()
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(passphrase))
    _write_new(path, pem, mode=0o600)
    return CryptoSigner(private, SSlibKey.from_crypto(private.public_key()))


def write_public_key(path: Path, key: Key) -> None:
    """The public half in a file that anybody may read; raises `KeyUnusableError` rather than replace one."""
    raw = bytes.fromhex(str(key.keyval["public"]))
    pem = Ed25519PublicKey.from_public_bytes(raw).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    _write_new(path, pem, mode=0o644)


def load_public_key(path: Path) -> Key:
    """The public half in a file; raises `KeyUnusableError`."""
    hint = "Its keeper makes one with `manage.py trust make-key FILE` and gives FILE's .pub.pem."
    try:
        public = load_pem_public_key(path.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise KeyUnusableError(f"{path} can't be read as a public key", hint=hint) from error
    if not isinstance(public, Ed25519PublicKey):
        raise KeyUnusableError(f"{path} is no Ed25519 key", hint=hint)
    return SSlibKey.from_crypto(public)


def _write_new(path: Path, content: bytes, *, mode: int) -> None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise KeyUnusableError(f"{path} can't be made: {error.strerror}", hint="Choose a fresh place.") from error


def load_key(path: Path, passphrase: bytes) -> CryptoSigner:
    """The key in a file; raises `KeyUnusableError`."""
    try:
        private = load_pem_private_key(path.read_bytes(), password=passphrase)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyUnusableError(f"{path} can't be opened as an encrypted key: {error}") from error
    if not isinstance(private, Ed25519PrivateKey):
        raise KeyUnusableError(f"{path} is no Ed25519 key")
    return CryptoSigner(private, SSlibKey.from_crypto(private.public_key()))


def make_online_key(role: str) -> CryptoSigner:
    """A new key for one of the `ONLINE_ROLES`, where the running service finds it once metadata names it."""
    directory = Path(settings.SOCLE_TRUST_KEY_DIR)
    fresh = directory / f"{role}.new.pem"
    fresh.unlink(missing_ok=True)
    signer = make_key(fresh, online_passphrase())
    fresh.rename(directory / f"{role}.{signer.public_key.keyid[:16]}.pem")
    return signer


def online_passphrase() -> bytes:
    """The passphrase of the online keys; raises `KeyUnusableError`."""
    if settings.SOCLE_TRUST_PASSPHRASE:
        return str(settings.SOCLE_TRUST_PASSPHRASE).encode()
    hint = "Set SOCLE_TRUST_PASSPHRASE_FILE (or SOCLE_TRUST_PASSPHRASE) for the web server, the worker and manage.py."
    if not settings.SOCLE_TRUST_PASSPHRASE_FILE:
        raise KeyUnusableError("the online keys have no passphrase", hint=hint)
    return read_passphrase(Path(settings.SOCLE_TRUST_PASSPHRASE_FILE))


def read_passphrase(path: Path) -> bytes:
    """The first line of a file; raises `KeyUnusableError`."""
    try:
        passphrase = path.read_bytes().split(b"\n")[0].strip()
    except OSError as error:
        raise KeyUnusableError(f"{path} can't be read: {error.strerror}") from error
    if not passphrase:
        raise KeyUnusableError(f"{path} holds no passphrase in its first line")
    return passphrase


def online_signer(role: str, keyids: Collection[str]) -> CryptoSigner:
    """The running service's signer for a role, by one of these keys; raises `KeyUnusableError`."""
    for keyid in keyids:
        path = Path(settings.SOCLE_TRUST_KEY_DIR) / f"{role}.{keyid[:16]}.pem"
        if path.exists():
            return load_key(path, online_passphrase())
    raise KeyUnusableError(
        f"{settings.SOCLE_TRUST_KEY_DIR} holds no key that may sign {role}",
        hint="Point SOCLE_TRUST_KEY_DIR to the online keys, or rotate them with `manage.py trust rotate`.",
    )


def raw_public_key(signer: CryptoSigner) -> str:
    """The raw public key in base64, as `engine.trust_documents.Policy` wants it."""
    return base64.b64encode(bytes.fromhex(str(signer.public_key.keyval["public"]))).decode()
