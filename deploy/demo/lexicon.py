# ruff: noqa: SIM905 - word lists read better as text
"""Words of the demo's world in both languages. The first name of a thing is canonical."""

from dataclasses import dataclass
from typing import Final

from deploy.demo.phrasing import Lang


@dataclass(frozen=True, slots=True)
class Term:
    """A thing with a language-neutral id and its names, canonical first."""

    id: str
    zh: tuple[str, ...]
    en: tuple[str, ...]

    def names(self, lang: Lang) -> tuple[str, ...]:
        """Return the names in a language."""
        return self.zh if lang == "zh" else self.en

    def canonical(self, lang: Lang) -> str:
        """Return the name that answers use."""
        return self.names(lang)[0]


@dataclass(frozen=True, slots=True)
class Device:
    """A device, its Home-Assistant-like domain, and what it can do (letters of `home.CAPABILITIES`)."""

    term: Term
    domain: str
    can: frozenset[str]


def read_terms(table: str) -> tuple[Term, ...]:
    """Read `id | zh, zh | en, en` lines."""
    rows = [[cell.strip() for cell in line.split("|")] for line in table.strip().splitlines()]
    return tuple(Term(row[0], _names(row[1]), _names(row[2])) for row in rows)


def _names(cell: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in cell.split(","))


def _devices(table: str) -> tuple[Device, ...]:
    """Read `id | zh | en | domain | capabilities` lines."""
    rows = [[cell.strip() for cell in line.split("|")] for line in table.strip().splitlines()]
    return tuple(Device(Term(row[0], _names(row[1]), _names(row[2])), row[3], frozenset(row[4])) for row in rows)


ROOMS: Final = read_terms("""
living_room | 客厅, 大厅 | living room, lounge
bedroom | 卧室 | bedroom
master_bedroom | 主卧, 主卧室 | master bedroom, main bedroom
guest_room | 客房, 客卧 | guest room, spare room
kitchen | 厨房 | kitchen
bathroom | 浴室, 卫生间 | bathroom, restroom
study | 书房 | study
dining_room | 餐厅, 饭厅 | dining room
balcony | 阳台 | balcony
hallway | 走廊, 过道 | hallway, corridor
nursery | 婴儿房, 宝宝房 | nursery, baby room
kids_room | 儿童房, 孩子房间 | kids room, children's room
garage | 车库 | garage
basement | 地下室 | basement, cellar
attic | 阁楼 | attic, loft
garden | 花园, 院子 | garden, backyard
laundry_room | 洗衣房 | laundry room
office | 办公室 | office, home office
gym | 健身房 | gym, fitness room
cloakroom | 衣帽间 | cloakroom, walk-in closet
entrance | 玄关, 门厅 | entrance, foyer
terrace | 露台 | terrace, patio
cinema | 影音室, 家庭影院 | cinema, home theater
tea_room | 茶室 | tea room
storage_room | 储物间 | storage room
elder_room | 老人房, 爸妈房间 | grandparents room, parents room
""")

DEVICES: Final = _devices("""
light | 灯, 电灯 | light, lights | light | sbcq
desk_lamp | 台灯 | desk lamp | light | sbcq
ceiling_light | 吸顶灯, 顶灯 | ceiling light, ceiling lamp | light | sbcq
floor_lamp | 落地灯 | floor lamp, standing lamp | light | sbcq
night_light | 夜灯, 小夜灯 | night light | light | sbcq
light_strip | 灯带 | light strip, led strip | light | sbcq
wall_lamp | 壁灯 | wall lamp, sconce | light | sbcq
air_conditioner | 空调, 冷气 | air conditioner, ac | climate | stfq
heater | 取暖器, 暖风机 | heater, space heater | climate | stq
floor_heating | 地暖 | floor heating, underfloor heating | climate | stq
water_heater | 热水器 | water heater, boiler | climate | stq
fan | 风扇, 电扇 | fan | fan | sfq
air_purifier | 空气净化器, 净化器 | air purifier | fan | sfq
ventilation | 新风, 新风系统 | ventilation, fresh air system | fan | sfq
humidifier | 加湿器 | humidifier | humidifier | sq
dehumidifier | 除湿机 | dehumidifier | humidifier | sq
tv | 电视, 电视机 | tv, television | media_player | svq
speaker | 音箱, 音响 | speaker, sound system | media_player | svq
projector | 投影仪 | projector | media_player | svq
radio | 收音机 | radio | media_player | svq
socket | 插座 | socket, plug | switch | sq
coffee_machine | 咖啡机 | coffee machine, coffee maker | switch | sq
rice_cooker | 电饭煲, 电饭锅 | rice cooker | switch | sq
kettle | 热水壶, 水壶 | kettle | switch | sq
oven | 烤箱 | oven | switch | sq
dishwasher | 洗碗机 | dishwasher | switch | sq
washing_machine | 洗衣机 | washing machine, washer | switch | sq
dryer | 烘干机 | dryer, tumble dryer | switch | sq
diffuser | 香薰机 | diffuser, aroma diffuser | switch | sq
camera | 摄像头 | camera | switch | sq
vacuum | 扫地机器人, 扫地机 | robot vacuum, vacuum | vacuum | sq
curtain | 窗帘 | curtain, curtains | cover | p
blind | 百叶窗 | blind, blinds | cover | p
shutter | 卷帘 | shutter, roller shutter | cover | p
window | 窗户, 窗子 | window, windows | cover | p
skylight | 天窗 | skylight, roof window | cover | p
awning | 遮阳棚 | awning, sunshade | cover | p
""")

COLORS: Final = read_terms("""
red | 红色 | red
blue | 蓝色 | blue
green | 绿色 | green
yellow | 黄色 | yellow
purple | 紫色 | purple
orange | 橙色, 橘色 | orange
pink | 粉色, 粉红色 | pink
white | 白色 | white
warm_white | 暖白色, 暖光 | warm white
cyan | 青色 | cyan
""")

SCENES: Final = read_terms("""
home | 回家 | home, coming home
away | 离家, 出门 | away, leaving home
sleep | 睡眠, 睡觉 | sleep, bedtime
movie | 观影, 看电影 | movie, film
party | 聚会, 派对 | party
reading | 阅读, 看书 | reading
morning | 起床, 早晨 | morning, wake up
dinner | 用餐, 晚餐 | dinner
work | 工作, 办公 | work, focus
guest | 会客, 待客 | guest, visitors
holiday | 度假 | holiday, vacation
romantic | 浪漫 | romantic, date night
exercise | 运动, 锻炼 | exercise, workout
cleaning | 打扫, 清洁 | cleaning
game | 游戏 | game, gaming
""")

MEASURES: Final = read_terms("""
temperature | 温度, 室温 | temperature
humidity | 湿度 | humidity
air_quality | 空气质量 | air quality
pm25 | PM2.5 | PM2.5
co2 | 二氧化碳浓度, 二氧化碳 | CO2 level, carbon dioxide level
brightness | 光照, 光照强度 | light level, illuminance
noise | 噪音, 噪声 | noise level
""")

FAN_SPEEDS: Final = read_terms("""
low | 低, 最小 | low, lowest
medium | 中, 中等 | medium, middle
high | 高, 最大 | high, highest
auto | 自动 | auto, automatic
""")

COMMON_HANZI: Final = "".join(
    bytes((row, cell)).decode("gb2312")
    for row in range(0xB0, 0xD8)
    for cell in range(0xA1, 0xFF)
    if (row, cell) < (0xD7, 0xFA)
)
"""The 3,755 characters of GB 2312 level 1, so that any Chinese name can be read and copied."""

ZH_SURNAMES: Final = "王李张刘陈杨赵黄周吴徐孙胡朱高林何郭马罗梁宋郑谢韩唐冯于董萧程曹袁邓许傅沈曾彭吕"
ZH_GIVEN: Final = (
    "伟 芳 敏 静 磊 洋 勇 艳 杰 娟 涛 明 超 霞 平 刚 桂英 秀兰 志强 建国 文博 雨欣 子涵 梓轩 一诺 思远 浩然 欣怡 "
    "嘉怡 晓东 晓燕 小红 国庆 海波 丽华 俊杰 佳琪 天宇 若曦 书瑶"
).split()
ZH_TITLES: Final = "经理 老师 医生 律师 师傅 阿姨 叔叔 教练 主任 总 同学 工".split()
ZH_FAMILY: Final = "爸爸 妈妈 爷爷 奶奶 老婆 老公 哥哥 姐姐 弟弟 妹妹 女儿 儿子 外婆 舅舅 姑姑".split()
EN_FIRST: Final = (
    "Emma Liam Olivia Noah Ava Lucas Mia Ethan Sophia James Grace Henry Chloe Daniel Lily Samuel Ruby Oscar Alice "
    "Peter Nora David Ella Simon Hannah Victor Julia Martin Clara Felix Rosa Adam Irene Paul Sarah Tom Anna Jack "
    "Kate Leo"
).split()
EN_LAST: Final = (
    "Smith Brown Wilson Taylor Clark Walker Hall Young King Wright Green Baker Hill Carter Turner Parker Cook Bell "
    "Ward Gray Fox Stone Wood Reed Hayes Ford Price Long Ross Shaw"
).split()
EN_FAMILY: Final = "Mom Dad Grandma Grandpa Auntie Uncle".split()
ZH_PLACE_NAMES: Final = (
    "人民 中山 解放 建国 长江 和平 胜利 新华 北海 东湖 西山 南京 青年 滨江 朝阳 光明 幸福 翠湖 金水 白云 紫荆 龙泉 "
    "望京 五道口 花园 凤凰 银河 星光 春天 大学 万达 国际 虹桥 临江 清河 梅园 兰亭 松山 石桥 海棠"
).split()
ZH_PLACE_KINDS: Final = (
    "公园 广场 医院 小学 图书馆 地铁站 火车站 机场 体育馆 博物馆 商场 大厦 酒店 超市 电影院 停车场 小区 美术馆 游泳馆 "
    "动物园 菜市场 写字楼 中学 码头"
).split()
EN_PLACE_NAMES: Final = (
    "Central Riverside Maple Oak Union Harbor Sunset Lakeside Victoria Grand Green Silver Golden North South East West "
    "Hillside Garden Market Church Cedar Pine Willow Liberty Empire Castle Bridge Ocean Valley Spring Forest Crystal "
    "Eagle Rose Park Meadow Summit Stanford Orchard"
).split()
EN_PLACE_KINDS: Final = (
    "Park Square Hospital School Library Station Airport Stadium Museum Mall Tower Hotel Supermarket Cinema Garage "
    "Plaza Gallery Pool Zoo Market Office Academy Pier Theatre"
).split()
ZH_SONG_ADJ: Final = "春天 夏夜 海边 远方 月光 温柔 孤独 勇敢 透明 蓝色 最后 童年 雨中 城市 安静 风里".split()
ZH_SONG_NOUN: Final = "故事 星星 列车 晚风 信 花 河流 翅膀 小路 梦 歌 约定 影子 灯塔 云 你".split()
EN_SONG_ADJ: Final = (
    "Silver Broken Golden Lonely Summer Midnight Paper Quiet Electric Crimson Hidden Falling Little Endless Wild Blue"
).split()
EN_SONG_NOUN: Final = (
    "River Heart Sky Road Dream Dance Train Garden Shadow Letter Ocean Mirror Flower Fire Moon Window"
).split()
