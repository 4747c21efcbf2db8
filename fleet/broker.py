"""Celery's broker in a folder, with messages that appear whole.

kombu's `filesystem` transport opens a message's file under its final name and writes to it afterwards. A worker that
looks in between takes an empty message, calls it an unrecoverable error and stops. Here the file gets its name last.
"""

import time
import uuid
from pathlib import Path
from typing import Any

from kombu.exceptions import ChannelError
from kombu.transport import TRANSPORT_ALIASES, filesystem
from kombu.utils.json import dumps


class Channel(filesystem.Channel):
    """As kombu's, but for the writing."""

    def _put(self, queue: str, payload: Any, **_kwargs: Any) -> None:
        """Put a message into the queue; the name begins with the time, which is the order of delivery."""
        place = Path(self.data_folder_out) / f"{round(time.monotonic() * 1000)}_{uuid.uuid4()}.{queue}.msg"
        unfinished = place.with_suffix(".tmp")
        try:
            unfinished.write_text(dumps(payload), encoding="utf-8")
            unfinished.replace(place)
        except OSError as error:
            raise ChannelError(f"Cannot put a message into {place.parent}: {error.strerror}") from error


class Transport(filesystem.Transport):
    """What a broker URL of `filesystem://` stands for, once `register` was called."""

    Channel = Channel


def register() -> None:
    """Take the place of kombu's transport in this process."""
    TRANSPORT_ALIASES["filesystem"] = f"{__name__}:{Transport.__name__}"
