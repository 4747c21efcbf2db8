"""Settings, all from the environment (prefix SOCLE_), with defaults that run on one machine without services.

The defaults: SQLite, Celery over a folder, blobs on the local disk, everything below SOCLE_DATA_DIR. Values that
cannot be right are refused here, at the start, and never replaced by a default.
"""

import atexit
import shutil
import sys
import tempfile
from pathlib import Path

import environ
from csp.constants import NONE, SELF
from django.core.exceptions import ImproperlyConfigured
from environ.compat import DJANGO_POSTGRES
from kombu import Exchange, Queue

from fleet.bootstrap import load_or_create_secret_key, prepare_folder
from fleet.logs import logging_config

env = environ.Env()
env.prefix = "SOCLE_"

ROOT = Path(__file__).resolve().parent.parent
TESTING = "pytest" in sys.modules


def _data_dir() -> Path:
    """Where state lives. Tests get a folder of their own that goes when they end."""
    if not TESTING:
        return prepare_folder(Path(env.str("DATA_DIR", default=str(ROOT / "var"))).absolute())
    folder = Path(tempfile.mkdtemp(prefix="socle-test-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _positive(name: str, default: float) -> float:
    """A number from the environment that must be above zero."""
    value = env.float(name, default=default)
    if not value > 0:
        raise ImproperlyConfigured(f"SOCLE_{name} is {value}; it must be above 0")
    return value


DATA_DIR = _data_dir()

# --- Socle ---------------------------------------------------------------------------------------------------------
SOCLE_DATA_DIR = DATA_DIR
SOCLE_BLOB_DIR = prepare_folder(Path(env.str("BLOB_DIR", default=str(DATA_DIR / "blobs"))))
SOCLE_POLL_INTERVAL_S = _positive("POLL_INTERVAL_S", 60.0)
SOCLE_MAX_UPLOAD_BYTES = int(_positive("MAX_UPLOAD_BYTES", 64 << 30))
SOCLE_TELEMETRY_RETENTION_DAYS = _positive("TELEMETRY_RETENTION_DAYS", 30)
# Keys of what the service signs by itself, encrypted; manage.py trust makes them. Offline keys are never kept here.
SOCLE_TRUST_KEY_DIR = Path(env.str("TRUST_KEY_DIR", default=str(DATA_DIR / "trust-keys")))
SOCLE_TRUST_PASSPHRASE = env.str("TRUST_PASSPHRASE", default="")
SOCLE_TRUST_PASSPHRASE_FILE = env.str("TRUST_PASSPHRASE_FILE", default="")
SOCLE_DESIRED_VALID_S = _positive("DESIRED_VALID_S", 7 * 86_400)
SOCLE_SENDFILE = env.str("SENDFILE", default="")
if SOCLE_SENDFILE not in ("", "nginx"):
    raise ImproperlyConfigured(f"SOCLE_SENDFILE is {SOCLE_SENDFILE!r}; it may be empty or 'nginx'")

# --- Django --------------------------------------------------------------------------------------------------------
DEBUG = env.bool("DEBUG", default=False)
SECRET_KEY = env.str("SECRET_KEY", default="") or load_or_create_secret_key(DATA_DIR / "secret.key")
ALLOWED_HOSTS = env.list("ALLOWED_HOSTS", default=["localhost", "127.0.0.1", "[::1]"])
CSRF_TRUSTED_ORIGINS = env.list("CSRF_TRUSTED_ORIGINS", default=[])
ROOT_URLCONF = "fleet.urls"
ASGI_APPLICATION = "fleet.asgi.application"
WSGI_APPLICATION = "fleet.wsgi.application"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
APPEND_SLASH = False
USE_TZ = True
TIME_ZONE = "UTC"
LANGUAGE_CODE = "en-us"

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "csp",
    "django_filters",
    "rest_framework",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "registry",
    "fleet",
    "fleet.operators",
    "fleet.idempotency",
    "fleet.audit",
    "fleet.devices",
    "fleet.telemetry",
    "fleet.rollouts",
    "fleet.dashboard",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "fleet.static_files.StaticFilesMiddleware",
    "csp.middleware.CSPMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "fleet.idempotency.middleware.IdempotencyMiddleware",
]

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

# --- Database ------------------------------------------------------------------------------------------------------
# IMMEDIATE takes SQLite's write lock when a transaction begins: waiting works then, upgrading a read lock does not.
_SQLITE_OPTIONS = {
    "transaction_mode": "IMMEDIATE",
    "timeout": 20,
    "init_command": (
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA mmap_size=134217728; PRAGMA cache_size=-16000"
    ),
}
DATABASES = {"default": env.db_url("DATABASE_URL", default=f"sqlite:///{DATA_DIR / 'socle.sqlite3'}")}
if DATABASES["default"]["ENGINE"] == "django.db.backends.sqlite3":
    DATABASES["default"]["OPTIONS"] = _SQLITE_OPTIONS
    # A file in tests too: threads of a test then meet the real locks.
    DATABASES["default"]["TEST"] = {"NAME": str(DATA_DIR / "test.sqlite3")}
elif DATABASES["default"]["ENGINE"] == DJANGO_POSTGRES and not TESTING:  # tests kill threads in transactions
    DATABASES["default"]["OPTIONS"] = {"pool": {"min_size": 1, "max_size": 16, "timeout": 20}}

# Nonces of signed reads live here: with several web processes name a shared one (redis://...).
CACHES = {"default": env.cache_url("CACHE_URL", default="locmemcache://")}

# --- Security ------------------------------------------------------------------------------------------------------
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in ("UserAttributeSimilarityValidator", "MinimumLengthValidator", "CommonPasswordValidator")
]
PASSWORD_HASHERS = [
    "django.contrib.auth.hashers.Argon2PasswordHasher",
    "django.contrib.auth.hashers.PBKDF2PasswordHasher",
]
if TESTING:
    PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]

HTTPS = env.bool("HTTPS", default=False)  # True behind a proxy that speaks TLS and sets X-Forwarded-Proto
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = HTTPS
SESSION_COOKIE_SAMESITE = CSRF_COOKIE_SAMESITE = "Lax"
SECURE_HSTS_SECONDS = 31_536_000 if HTTPS else 0
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if HTTPS else None
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
CSRF_FAILURE_VIEW = "fleet.errors.csrf_failure"
# Bodies read as a whole: telemetry batches are the largest. Artifacts travel in chunks through registry's own reader.
DATA_UPLOAD_MAX_MEMORY_SIZE = 16 << 20
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [SELF],
        "script-src": [SELF],
        "style-src": [SELF],
        "img-src": [SELF, "data:"],
        "connect-src": [SELF],
        "object-src": [NONE],
        "base-uri": [NONE],
        "form-action": [SELF],
        "frame-ancestors": [NONE],
    },
}

# --- Static files --------------------------------------------------------------------------------------------------
STATIC_URL = "/static/"
STATIC_ROOT = prepare_folder(DATA_DIR / "static")
WHITENOISE_USE_FINDERS = True  # no collectstatic step on one machine; files come with the code
WHITENOISE_AUTOREFRESH = False

# --- API -----------------------------------------------------------------------------------------------------------
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "fleet.auth.OperatorTokenAuthentication",
        "rest_framework.authentication.SessionAuthentication",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["fleet.auth.HasScope"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["fleet.parsers.BoundedJSONParser"],
    "DEFAULT_FILTER_BACKENDS": ["django_filters.rest_framework.DjangoFilterBackend"],
    "DEFAULT_PAGINATION_CLASS": "fleet.pagination.NewestFirst",
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "EXCEPTION_HANDLER": "fleet.errors.exception_handler",
    "UNAUTHENTICATED_USER": "django.contrib.auth.models.AnonymousUser",
    "TEST_REQUEST_DEFAULT_FORMAT": "json",
}
SPECTACULAR_SETTINGS = {
    "TITLE": "Socle",
    "DESCRIPTION": "One shared language model on every device of a fleet, one small LoRA adapter per business.",
    "VERSION": "1",
    "SERVE_INCLUDE_SCHEMA": False,
    "SERVE_PERMISSIONS": ["rest_framework.permissions.AllowAny"],
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "SCHEMA_PATH_PREFIX": "/api/v1",
    "COMPONENT_SPLIT_REQUEST": True,
    "ENUM_NAME_OVERRIDES": {
        "DeviceStateEnum": "fleet.devices.models.DeviceState",
        "RolloutStateEnum": "fleet.rollouts.models.ROLLOUT_STATES",
        "RolloutStepEnum": "fleet.rollouts.models.STEPS",
        "ReleaseStateEnum": "registry.models.ReleaseState",
        "PublicationStateEnum": "registry.states.PublicationState",
        "ArtifactKindEnum": "registry.models.ArtifactKind",
    },
    "POSTPROCESSING_HOOKS": [
        "drf_spectacular.hooks.postprocess_schema_enums",
        "fleet.openapi.describe_problems",
        "fleet.openapi.describe_idempotency",
    ],
}

# --- Celery --------------------------------------------------------------------------------------------------------
_BROKER_DIR = DATA_DIR / "broker"
CELERY_BROKER_URL = "memory://" if TESTING else env.str("BROKER_URL", default="filesystem://localhost//")
CELERY_BROKER_TRANSPORT_OPTIONS = {"polling_interval": 0.01 if TESTING else 0.05}
if CELERY_BROKER_URL.startswith("filesystem:"):
    CELERY_BROKER_TRANSPORT_OPTIONS |= {
        "data_folder_in": str(prepare_folder(_BROKER_DIR / "messages")),
        "data_folder_out": str(_BROKER_DIR / "messages"),
        "control_folder": str(prepare_folder(_BROKER_DIR / "control")),
    }
# Converting a model takes minutes. A worker serves both queues unless told otherwise (-Q), and with more than one
# thread or process rollouts never wait for a conversion.
CELERY_TASK_QUEUES = [Queue(name, Exchange(name), routing_key=name) for name in ("celery", "conversion")]
_LONG_TASKS = ("process_publication", "make_index")
CELERY_TASK_ROUTES = {f"registry.tasks.{name}": {"queue": "conversion"} for name in _LONG_TASKS}
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_TASK_ALWAYS_EAGER = TESTING
CELERY_TASK_EAGER_PROPAGATES = True
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_ACKS_LATE = True
CELERY_TASK_TIME_LIMIT = 3600
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_TIMEZONE = "UTC"
CELERY_BEAT_SCHEDULE_FILENAME = str(DATA_DIR / "celerybeat-schedule")
# Each message expires before the next is sent, so that nothing piles up while no worker runs.
CELERY_BEAT_SCHEDULE = {
    name: {"task": name, "schedule": every_s, "options": {"expires": every_s}}
    for name, every_s in (
        ("registry.tasks.sweep", 10.0),
        ("registry.tasks.collect_garbage", 3600.0),
        ("registry.tasks.refresh_trust", 600.0),
        ("fleet.rollouts.tasks.tick_rollouts", 5.0),
        ("fleet.devices.tasks.apply_all_limits", 10.0),
        ("fleet.devices.tasks.forget_expired", 60.0),
        ("fleet.telemetry.tasks.delete_old", 3600.0),
    )
}

LOGGING_CONFIG = "logging.config.dictConfig"
LOGGING = logging_config(
    as_json=env.str("LOG_FORMAT", default="console") == "json", level=env.str("LOG_LEVEL", default="INFO")
)
