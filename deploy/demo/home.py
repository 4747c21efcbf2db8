"""Smart-home commands: frames, wording, and two schemas of tool calls.

`home` names things as the user does; `home-2` is Home Assistant's style: a service and an entity with English ids.
"""

import random
from collections.abc import Callable
from typing import Final

from deploy.demo import lexicon
from deploy.demo.commands import Call, Domain, Frame
from deploy.demo.home_wording import SYSTEM_EN, SYSTEM_ZH, WORDINGS
from deploy.demo.lexicon import Device, Term
from deploy.demo.phrasing import Lang, number, say, weighted_surface

_ROOMLESS_SHARE: Final = 0.15


def _devices(capability: str) -> tuple[Device, ...]:
    return tuple(device for device in lexicon.DEVICES if capability in device.can)


class _Target:
    """A device in a room, or in no room in particular, as said and as answered."""

    def __init__(self, capability: str, lang: Lang, rng: random.Random) -> None:
        self.device: Device = rng.choice(_devices(capability))
        self.room: Term | None = None if rng.random() < _ROOMLESS_SHARE else rng.choice(lexicon.ROOMS)
        self.lang: Lang = lang
        self.spoken = self._spoken(rng)
        self.canonical = self._canonical()
        self.entity = f"{self.device.domain}." + "_".join(t.id for t in (self.room, self.device.term) if t)
        self.combination = (self.room.id if self.room else "-", self.device.term.id)

    def _spoken(self, rng: random.Random) -> str:
        thing = weighted_surface(self.device.term.names(self.lang), rng)
        if self.room is None:
            return thing if self.lang == "zh" else f"the {thing}"
        room = weighted_surface(self.room.names(self.lang), rng)
        if self.lang == "zh":
            return say("{room}[的|的||里的]{thing}", rng, {"room": room, "thing": thing})
        pattern = "[the {room} {thing}|the {room} {thing}|the {thing} in the {room}|{room} {thing}]"
        return say(pattern, rng, {"room": room, "thing": thing})

    def _canonical(self) -> str:
        thing = self.device.term.canonical(self.lang)
        if self.room is None:
            return thing if self.lang == "zh" else f"the {thing}"
        room = self.room.canonical(self.lang)
        return f"{room}的{thing}" if self.lang == "zh" else f"the {room} {thing}"

    def arguments(self) -> dict[str, object]:
        """Return the arguments that name the target as the user does."""
        named: dict[str, object] = {"room": self.room.canonical(self.lang)} if self.room else {}
        return {**named, "device": self.device.term.canonical(self.lang)}

    def entity_argument(self) -> dict[str, object]:
        """Return the argument that names the target by its English id."""
        return {"entity": self.entity}

    def frame(self, intent: str, service: str, value: "_Value | None" = None) -> Frame:
        """Return the frame of an intent on this target."""
        spoken, canonical = {"target": self.spoken}, {"target": self.canonical}
        first, second = self.arguments(), self.entity_argument()
        if value is not None:
            spoken["value"], canonical["value"] = value.spoken, value.canonical
            first, second = {**first, value.name: value.first}, {**second, value.name_2: value.second}
        calls = {"home": Call(intent, first), "home-2": Call(service, second)}
        return Frame(intent, self.combination, spoken, canonical, calls)


class _Value:
    """An argument beside the device, in each schema."""

    def __init__(self, name: str, name_2: str, spoken: str, canonical: str, *, first: object, second: object) -> None:
        self.name, self.name_2 = name, name_2
        self.spoken, self.canonical = spoken, canonical
        self.first, self.second = first, second


def _number_value(name: str, name_2: str, value: int, lang: Lang, rng: random.Random) -> _Value:
    return _Value(name, name_2, number(value, lang, rng), str(value), first=value, second=value)


def _term_value(name: str, name_2: str, term: Term, lang: Lang, rng: random.Random) -> _Value:
    spoken = weighted_surface(term.names(lang), rng)
    return _Value(name, name_2, spoken, term.canonical(lang), first=term.canonical(lang), second=term.id)


def _percent(rng: random.Random) -> int:
    return rng.randrange(5, 101, 5) if rng.random() < 0.6 else rng.randint(1, 100)


def _switch(intent: str) -> Callable[[Lang, random.Random], Frame]:
    def draw(lang: Lang, rng: random.Random) -> Frame:
        target = _Target("s", lang, rng)
        return target.frame(intent, f"{target.device.domain}.{intent}")

    return draw


def _cover(intent: str) -> Callable[[Lang, random.Random], Frame]:
    return lambda lang, rng: _Target("p", lang, rng).frame(intent, f"cover.{intent}")


def _temperature(lang: Lang, rng: random.Random) -> Frame:
    target = _Target("t", lang, rng)
    degrees = rng.randint(35, 65) if target.device.term.id == "water_heater" else rng.randint(16, 31)
    value = _number_value("temperature", "temperature", degrees, lang, rng)
    return target.frame("set_temperature", "climate.set_temperature", value)


def _brightness(lang: Lang, rng: random.Random) -> Frame:
    value = _number_value("brightness", "brightness_pct", _percent(rng), lang, rng)
    return _Target("b", lang, rng).frame("set_brightness", "light.turn_on", value)


def _color(lang: Lang, rng: random.Random) -> Frame:
    value = _term_value("color", "color_name", rng.choice(lexicon.COLORS), lang, rng)
    return _Target("c", lang, rng).frame("set_color", "light.turn_on", value)


def _position(lang: Lang, rng: random.Random) -> Frame:
    value = _number_value("position", "position", _percent(rng), lang, rng)
    return _Target("p", lang, rng).frame("set_position", "cover.set_cover_position", value)


def _volume(lang: Lang, rng: random.Random) -> Frame:
    value = _number_value("volume", "volume_level", _percent(rng), lang, rng)
    return _Target("v", lang, rng).frame("set_volume", "media_player.volume_set", value)


def _fan_speed(lang: Lang, rng: random.Random) -> Frame:
    target = _Target("f", lang, rng)
    value = _term_value("speed", "fan_mode", rng.choice(lexicon.FAN_SPEEDS), lang, rng)
    return target.frame("set_fan_speed", f"{target.device.domain}.set_fan_mode", value)


def _timer(lang: Lang, rng: random.Random) -> Frame:
    minutes = rng.choice((5, 10, 15, 20, 25, 30, 40, 45, 50, 60, 90, rng.randint(2, 99)))
    value = _number_value("minutes", "delay_min", minutes, lang, rng)
    return _Target("s", lang, rng).frame("set_off_timer", "timer.turn_off_after", value)


def _query_device(lang: Lang, rng: random.Random) -> Frame:
    return _Target("q", lang, rng).frame("get_device_state", "state.get")


def _query_sensor(lang: Lang, rng: random.Random) -> Frame:
    room, measure = rng.choice(lexicon.ROOMS), rng.choice(lexicon.MEASURES)
    spoken = {"room": weighted_surface(room.names(lang), rng), "measure": weighted_surface(measure.names(lang), rng)}
    canonical = {"room": room.canonical(lang), "measure": measure.canonical(lang)}
    calls = {
        "home": Call("get_sensor", canonical),
        "home-2": Call("state.get", {"entity": f"sensor.{room.id}_{measure.id}"}),
    }
    return Frame("get_sensor", (room.id, measure.id), spoken, canonical, calls)


def _scene(lang: Lang, rng: random.Random) -> Frame:
    scene = rng.choice(lexicon.SCENES)
    spoken, canonical = {"scene": weighted_surface(scene.names(lang), rng)}, {"scene": scene.canonical(lang)}
    calls = {
        "home": Call("activate_scene", canonical),
        "home-2": Call("scene.turn_on", {"entity": f"scene.{scene.id}"}),
    }
    return Frame("activate_scene", (scene.id,), spoken, canonical, calls, closed=True)


_DRAWS: Final[tuple[tuple[Callable[[Lang, random.Random], Frame], int], ...]] = (
    (_switch("turn_on"), 5),
    (_switch("turn_off"), 5),
    (_cover("open_cover"), 2),
    (_cover("close_cover"), 2),
    (_temperature, 4),
    (_brightness, 3),
    (_color, 2),
    (_position, 2),
    (_volume, 2),
    (_fan_speed, 2),
    (_timer, 2),
    (_query_device, 2),
    (_query_sensor, 2),
    (_scene, 2),
)


def draw(lang: Lang, rng: random.Random) -> Frame:
    """Draw any smart-home command."""
    makers, weights = zip(*_DRAWS, strict=True)
    maker: Callable[[Lang, random.Random], Frame] = rng.choices(makers, weights)[0]
    return maker(lang, rng)


HOME: Final = Domain("home", draw, WORDINGS, SYSTEM_ZH, SYSTEM_EN)
