"""In-car commands: frames and tool calls. Places, people and songs are copied; seats and modes are English ids."""

import random
from collections.abc import Callable, Mapping
from typing import Final

from deploy.demo import people
from deploy.demo.car_wording import SYSTEM_EN, SYSTEM_ZH, WORDINGS
from deploy.demo.commands import Call, Domain, Frame
from deploy.demo.lexicon import Term, read_terms
from deploy.demo.phrasing import Lang, number, say, weighted_surface

SEATS: Final = read_terms("""
driver | 主驾, 驾驶座, 主驾驶 | driver, driver's
passenger | 副驾, 副驾驶 | passenger, front passenger
rear_left | 左后, 后排左侧 | rear left, left rear
rear_right | 右后, 后排右侧 | rear right, right rear
""")
ZONES: Final = (
    *SEATS,
    *read_terms("""
front | 前排 | front
rear | 后排, 后座 | rear, back
all | 全车, 车内 | whole car, cabin
"""),
)
SEAT_FUNCTIONS: Final = read_terms("""
heating | 加热 | heating, heater
ventilation | 通风 | ventilation, cooling
massage | 按摩 | massage
""")
AVOID: Final = read_terms("""
tolls | 收费路段, 收费站 | tolls, toll roads
highways | 高速, 高速公路 | highways, motorways
traffic | 拥堵, 堵车路段 | traffic, traffic jams
ferries | 轮渡 | ferries
""")
POIS: Final = read_terms("""
charging_station | 充电站, 充电桩 | charging station, charger
gas_station | 加油站 | gas station, petrol station
parking | 停车场 | parking lot, car park
restroom | 洗手间, 厕所 | restroom, toilet
restaurant | 餐馆, 饭店 | restaurant
coffee | 咖啡店, 咖啡馆 | coffee shop, cafe
supermarket | 超市 | supermarket, grocery store
hospital | 医院 | hospital
pharmacy | 药店 | pharmacy, drugstore
hotel | 酒店, 宾馆 | hotel
bank | 银行 | bank
car_wash | 洗车店 | car wash
service_area | 服务区 | rest area, service area
repair_shop | 修车店 | repair shop, garage
bakery | 面包店 | bakery
park | 公园 | park
""")
GENRES: Final = read_terms("""
rock | 摇滚, 摇滚乐 | rock
jazz | 爵士, 爵士乐 | jazz
classical | 古典, 古典音乐 | classical
pop | 流行, 流行歌 | pop
folk | 民谣 | folk
electronic | 电子, 电子音乐 | electronic, techno
country | 乡村, 乡村音乐 | country
light | 轻音乐 | light music, easy listening
""")
LIGHT_COLORS: Final = read_terms("""
red | 红色 | red
blue | 蓝色 | blue
green | 绿色 | green
purple | 紫色 | purple
orange | 橙色 | orange
pink | 粉色 | pink
white | 白色 | white
gold | 金色 | gold, golden
""")
DRIVE_MODES: Final = read_terms("""
eco | 节能, 经济 | eco, economy
sport | 运动 | sport, sports
comfort | 舒适 | comfort
snow | 雪地 | snow
offroad | 越野 | off-road
normal | 标准, 普通 | normal, standard
""")
MEDIA_ACTIONS: Final = read_terms("""
pause | 暂停播放, 暂停音乐, 别放了 | pause the music, pause
play | 继续播放, 接着放 | resume the music, keep playing
next | 下一首, 换一首, 切歌 | next song, skip this song
previous | 上一首, 放上一首 | previous song, go back one song
""")
CAR_STATES: Final = read_terms("""
range | 续航, 剩余续航 | range, remaining range
battery | 电量, 剩余电量 | battery level, battery
tire_pressure | 胎压 | tire pressure, tyre pressure
mileage | 总里程, 里程 | mileage, odometer
outside_temperature | 车外温度 | outside temperature
washer_fluid | 玻璃水 | washer fluid
""")
DEFROST: Final = read_terms("""
front | 前挡风玻璃, 前挡 | windshield, front window
rear | 后挡风玻璃, 后挡 | rear window, back window
""")


def _frame(
    intent: str,
    spoken: Mapping[str, str],
    canonical: Mapping[str, str],
    arguments: Mapping[str, object],
    *,
    closed: bool = False,
) -> Frame:
    """Return a frame held out by its arguments."""
    combination = tuple(str(value) for value in arguments.values())
    return Frame(intent, combination, spoken, canonical, {"car": Call(intent, arguments)}, closed)


def _choose(terms: tuple[Term, ...], lang: Lang, rng: random.Random) -> tuple[Term, str, str]:
    """Return a term, what is said, and its canonical name."""
    term = rng.choice(terms)
    return term, weighted_surface(term.names(lang), rng), term.canonical(lang)


def _navigate(lang: Lang, rng: random.Random) -> Frame:
    destination = people.place(lang, rng)
    words = {"place": destination}
    return _frame("navigate_to", words, words, {"destination": destination})


def _navigate_avoiding(lang: Lang, rng: random.Random) -> Frame:
    destination = people.place(lang, rng)
    avoid, spoken, canonical = _choose(AVOID, lang, rng)
    arguments = {"destination": destination, "avoid": avoid.id}
    frame = _frame(
        "navigate_avoiding",
        {"place": destination, "avoid": spoken},
        {"place": destination, "avoid": canonical},
        arguments,
    )
    return _renamed(frame, "navigate_to", arguments)


def _renamed(frame: Frame, tool: str, arguments: Mapping[str, object]) -> Frame:
    """Return the frame with another tool's call: two wordings may share a tool."""
    return Frame(
        frame.intent, frame.combination, frame.spoken, frame.canonical, {"car": Call(tool, arguments)}, frame.closed
    )


def _nearby(lang: Lang, rng: random.Random) -> Frame:
    poi, spoken, canonical = _choose(POIS, lang, rng)
    radius_km = rng.randint(1, 30)
    words = {"value": number(radius_km, lang, rng)}
    arguments = {"category": poi.id, "radius_km": radius_km}
    return _frame("find_nearby", {"poi": spoken, **words}, {"poi": canonical, "value": str(radius_km)}, arguments)


def _climate(lang: Lang, rng: random.Random) -> Frame:
    zone, spoken, canonical = _choose(ZONES, lang, rng)
    degrees = rng.randint(16, 30)
    arguments = {"zone": zone.id, "temperature": degrees}
    return _frame(
        "set_climate",
        {"zone": spoken, "value": number(degrees, lang, rng)},
        {"zone": canonical, "value": str(degrees)},
        arguments,
    )


def _seat(lang: Lang, rng: random.Random) -> Frame:
    seat, said_seat, seat_name = _choose(SEATS, lang, rng)
    function, said_function, function_name = _choose(SEAT_FUNCTIONS, lang, rng)
    level = rng.randint(1, 5)
    spoken = {"seat": said_seat, "function": said_function, "value": number(level, lang, rng)}
    canonical = {"seat": seat_name, "function": function_name, "value": str(level)}
    return _frame("set_seat", spoken, canonical, {"seat": seat.id, "function": function.id, "level": level})


def _window(lang: Lang, rng: random.Random) -> Frame:
    seat, spoken, canonical = _choose(ZONES, lang, rng)
    percent = rng.randrange(5, 100, 5) if rng.random() < 0.5 else rng.randint(1, 99)
    arguments = {"window": seat.id, "percent": percent}
    return _frame(
        "set_window",
        {"seat": spoken, "value": number(percent, lang, rng)},
        {"seat": canonical, "value": str(percent)},
        arguments,
    )


def _play_song(lang: Lang, rng: random.Random) -> Frame:
    title, artist = people.song(lang, rng), people.person(lang, rng)
    words = {"song": title, "artist": artist}
    return _frame("play_song", words, words, {"song": title, "artist": artist})


def _play_genre(lang: Lang, rng: random.Random) -> Frame:
    genre, spoken, canonical = _choose(GENRES, lang, rng)
    return _frame("play_genre", {"genre": spoken}, {"genre": canonical}, {"genre": genre.id}, closed=True)


def _media(lang: Lang, rng: random.Random) -> Frame:
    action, spoken, canonical = _choose(MEDIA_ACTIONS, lang, rng)
    return _frame("control_media", {"action": spoken}, {"action": canonical}, {"action": action.id}, closed=True)


def _volume(lang: Lang, rng: random.Random) -> Frame:
    level = rng.randint(0, 60)
    words = {"value": str(level)}
    return _frame("set_volume", {"value": number(level, lang, rng)}, words, {"level": level})


def _call(lang: Lang, rng: random.Random) -> Frame:
    words = {"contact": people.person(lang, rng)}
    return _frame("call_contact", words, words, dict(words))


def _message(lang: Lang, rng: random.Random) -> Frame:
    minutes, contact, spot = rng.randint(2, 60), people.person(lang, rng), people.place(lang, rng)
    pattern = (
        "[我{n}分钟后到|我晚{n}分钟到|我到{spot}了|在{spot}门口等我|{spot}见|"
        "路上堵车，晚{n}分钟|我已经出发了|晚饭不用等我|到了给我打电话]"
        if lang == "zh"
        else "[I will be there in {n} minutes|I am {n} minutes late|I am at {spot}|meet me at {spot}|see you at {spot}|"
        "stuck in traffic, {n} minutes late|I am on my way|don't wait for dinner|call me when you arrive]"
    )
    words = {"contact": contact, "text": say(pattern, rng, {"n": minutes, "spot": spot})}
    return _frame("send_message", words, words, dict(words))


def _ambient(lang: Lang, rng: random.Random) -> Frame:
    color, spoken, canonical = _choose(LIGHT_COLORS, lang, rng)
    percent = rng.randint(1, 10) * 10
    arguments = {"color": color.id, "brightness": percent}
    return _frame(
        "set_ambient_light",
        {"color": spoken, "value": number(percent, lang, rng)},
        {"color": canonical, "value": str(percent)},
        arguments,
    )


def _drive_mode(lang: Lang, rng: random.Random) -> Frame:
    mode, spoken, canonical = _choose(DRIVE_MODES, lang, rng)
    return _frame("set_drive_mode", {"mode": spoken}, {"mode": canonical}, {"mode": mode.id}, closed=True)


def _defrost(lang: Lang, rng: random.Random) -> Frame:
    glass, spoken, canonical = _choose(DEFROST, lang, rng)
    return _frame("defrost", {"glass": spoken}, {"glass": canonical}, {"window": glass.id}, closed=True)


def _state(lang: Lang, rng: random.Random) -> Frame:
    item, spoken, canonical = _choose(CAR_STATES, lang, rng)
    return _frame("get_vehicle_state", {"item": spoken}, {"item": canonical}, {"item": item.id}, closed=True)


_DRAWS: Final[tuple[tuple[Callable[[Lang, random.Random], Frame], int], ...]] = (
    (_navigate, 5),
    (_navigate_avoiding, 3),
    (_nearby, 3),
    (_climate, 4),
    (_seat, 3),
    (_window, 3),
    (_play_song, 4),
    (_play_genre, 2),
    (_media, 1),
    (_volume, 1),
    (_call, 3),
    (_message, 4),
    (_ambient, 2),
    (_drive_mode, 1),
    (_defrost, 1),
    (_state, 2),
)


def draw(lang: Lang, rng: random.Random) -> Frame:
    """Draw any in-car command."""
    makers, weights = zip(*_DRAWS, strict=True)
    maker: Callable[[Lang, random.Random], Frame] = rng.choices(makers, weights)[0]
    return maker(lang, rng)


CAR: Final = Domain("car", draw, WORDINGS, SYSTEM_ZH, SYSTEM_EN)
