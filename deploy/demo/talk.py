# ruff: noqa: SIM905 - word lists read better as text
"""Small talk, facts and little stories: what the base says when nobody wants a device to move."""

import random
from typing import Final

from deploy.demo import people
from deploy.demo.phrasing import Lang, request, say
from deploy.demo.samples import Message, Sample

Exchange = tuple[tuple[str, ...], tuple[str, ...]]

_WORDS: Final[dict[Lang, dict[str, tuple[str, ...]]]] = {
    "zh": {
        "food": tuple("面条 饺子 火锅 米饭 寿司 披萨 沙拉 汤 蛋糕 烤鱼 豆腐 炒饭 包子 馄饨 凉面".split()),
        "hobby": tuple("跑步 画画 下棋 游泳 摄影 钓鱼 唱歌 读书 爬山 打篮球 种花 做饭 骑车 写字 弹琴".split()),
        "animal": tuple("小猫 小狗 兔子 鹦鹉 乌龟 小马 狐狸 松鼠 企鹅 小熊 刺猬 小鹿".split()),
        "feeling": tuple("开心 难过 累 无聊 紧张 生气 兴奋 孤单 困 平静".split()),
        "weather": tuple("晴天 下雨 下雪 刮风 多云 起雾 很热 很冷".split()),
        "city": tuple("北京 上海 广州 成都 杭州 西安 武汉 南京 青岛 昆明 苏州 厦门 长沙 哈尔滨".split()),
        "spot": tuple("森林里 河边 山顶上 小镇上 海岛上 草地上 城堡里 村口 沙漠里 图书馆里".split()),
        "thing": tuple("一把钥匙 一封信 一颗种子 一盏灯 一张地图 一本旧书 一个铃铛 一只风筝 一块石头 一枚硬币".split()),
        "trait": tuple("勇敢 害羞 好奇 聪明 善良 懒惰 调皮 细心 快乐 骄傲".split()),
        "season": tuple("春天 夏天 秋天 冬天".split()),
        "color": tuple("红色 蓝色 绿色 黄色 紫色 白色".split()),
        "job": tuple("老师 医生 司机 厨师 画家 工程师 农民 记者 护士 飞行员".split()),
    },
    "en": {
        "food": tuple(
            (
                "noodles|dumplings|hot pot|rice|sushi|pizza|salad|soup|cake|grilled fish|"
                "tofu|pasta|pancakes|tacos|curry"
            ).split("|")
        ),
        "hobby": tuple(
            "running|painting|chess|swimming|photography|fishing|singing|reading|hiking|basketball|gardening|cooking|cycling".split(
                "|"
            )
        ),
        "animal": tuple("cat|dog|rabbit|parrot|turtle|pony|fox|squirrel|penguin|bear|hedgehog|deer".split("|")),
        "feeling": tuple("happy|sad|tired|bored|nervous|angry|excited|lonely|sleepy|calm".split("|")),
        "weather": tuple("sunny|rainy|snowy|windy|cloudy|foggy|very hot|very cold".split("|")),
        "city": tuple(
            "London|Paris|Berlin|Rome|Madrid|Tokyo|Sydney|Toronto|Vienna|Oslo|Dublin|Boston|Chicago|Lisbon".split("|")
        ),
        "spot": tuple(
            (
                "in a forest|by a river|on a mountain|in a small town|on an island|"
                "in a meadow|in a castle|in a village|in a library"
            ).split("|")
        ),
        "thing": tuple("a key|a letter|a seed|a lamp|a map|an old book|a bell|a kite|a shiny stone|a coin".split("|")),
        "trait": tuple("brave|shy|curious|clever|kind|lazy|playful|careful|cheerful|proud".split("|")),
        "season": tuple("spring|summer|autumn|winter".split("|")),
        "color": tuple("red|blue|green|yellow|purple|white".split("|")),
        "job": tuple("teacher|doctor|driver|cook|painter|engineer|farmer|reporter|nurse|pilot".split("|")),
    },
}

_EXCHANGES: Final[dict[Lang, tuple[Exchange, ...]]] = {
    "zh": (
        (
            ("!你好", "![早上好|下午好|晚上好]", "!嗨[，小石|]", "!在吗"),
            ("[你好|您好]！[有什么可以帮您的吗|今天想聊点什么|很高兴见到您]？", "你好呀，我在呢。"),
        ),
        (
            ("!谢谢[你|]", "!太感谢了", "!辛苦了"),
            ("不客气[，随时叫我|，很高兴能帮上忙|]。", "不用谢[，这是我应该做的|]。"),
        ),
        (("!再见", "!拜拜", "!我先走了", "!晚安"), ("再见[，祝您愉快|，期待下次聊天|]！", "晚安，做个好梦。")),
        (
            ("!我叫{name}", "!我是{name}", "!你可以叫我{name}"),
            ("你好，{name}！[很高兴认识你|好名字|我记住了]。", "{name}，[幸会|欢迎你]。"),
        ),
        (
            ("!我[喜欢|最爱|很爱]{hobby}", "!周末我[打算|想]去{hobby}"),
            (
                "{hobby}[真不错|很有意思]，[您多久去一次|您和谁一起|什么时候开始的]？",
                "[听起来很棒|真好]，{hobby}能让人[放松|开心|更健康]。",
            ),
        ),
        (
            ("!我今天[很|有点|特别]{feeling}", "!感觉{feeling}", "!为什么我总是{feeling}"),
            (
                "{feeling}的时候，可以[听听音乐|出去走走|喝杯热茶|早点休息|和朋友聊聊]。",
                "我明白，{feeling}[也很正常|是常有的事]，[要不要聊聊|我陪着你]。",
            ),
        ),
        (
            ("!晚饭吃什么好", "!推荐[一道|个]菜", "!中午吃{food}[怎么样|好不好]", "!我想吃{food}"),
            (
                "[不如试试|推荐|可以吃]{food}[，再来点水果|，简单又好吃|，配一碗汤]。",
                "{food}[不错|很香]，[记得少放盐|慢慢吃]。",
            ),
        ),
        (
            ("!{city}[今天|现在]{weather}吗", "!{city}天气怎么样"),
            ("{city}[今天|这会儿]{weather}，[出门记得看看窗外|注意增减衣服|多喝水]。", "听说{city}{weather}。"),
        ),
        (
            ("!{city}[好玩吗|有什么好玩的]", "!我想去{city}[旅游|玩]"),
            (
                "{city}很[漂亮|热闹|有意思]，[适合|可以]{season}去，[还能|顺便]吃{food}。",
                "去{city}的话，[{season}最好|建议住两天]。",
            ),
        ),
        (("!你喜欢什么颜色", "!你最爱的颜色"), ("我[喜欢|最爱]{color}，[像{season}一样|看着舒服]。",)),
        (
            ("!你喜欢{animal}吗", "!我家有一只{animal}"),
            ("{animal}很[可爱|聪明|有趣]，[我很喜欢|它叫什么名字]。", "当然[喜欢|]，{animal}[最{trait}了|让人开心]。"),
        ),
        (
            ("!你是谁", "!你叫什么", "!介绍一下你自己"),
            ("我是小石，一个[住在设备里的|小小的]助手。", "我叫小石，[会聊天，也会帮忙控制设备|很高兴为您服务]。"),
        ),
        (
            ("!我[是|想当|以后想当]{job}", "!{job}这个工作怎么样"),
            ("{job}[是个好职业|很了不起|需要耐心]，[加油|祝您顺利]。",),
        ),
        (
            ("!讲个笑话", "!逗我笑一下", "来个笑话"),
            ("有一天，{animal}去买{food}，老板问：要几份？{animal}说：[我只是来{hobby}的|先来{n}份吧|看看不要钱吧]。",),
        ),
        (("!{season}适合做什么", "!{season}去哪儿好"), ("{season}适合{hobby}，[也可以|还能]去{city}[看看|走走]。",)),
        (
            ("!给我[一点|一些]建议，怎么学{hobby}", "!怎么学好{hobby}"),
            (
                (
                    "学{hobby}[别着急|要坚持]：第一步，找一位[好老师|朋友]；"
                    "第二步，每天练{n}分钟；第三步，[多休息|记录进步|和别人交流]。"
                ),
            ),
        ),
    ),
    "en": (
        (
            ("!hello", "!good [morning|afternoon|evening]", "!hi[ there|]", "!are you there?"),
            ("Hello! [How can I help you|What shall we talk about|Nice to meet you]?", "Hi, I am here."),
        ),
        (
            ("!thanks[ a lot|]", "!thank you[ so much|]", "!great job"),
            ("You are welcome[, any time|, happy to help|].", "My pleasure."),
        ),
        (
            ("!bye", "!see you[ later|]", "!I have to go", "!good night"),
            ("Goodbye[, have a nice day|, see you soon|]!", "Good night, sleep well."),
        ),
        (
            ("!my name is {name}", "!I am {name}", "!you can call me {name}"),
            ("Hello {name}, [nice to meet you|what a nice name|I will remember it].", "Welcome, {name}."),
        ),
        (
            ("!I [like|love|enjoy] {hobby}", "!this weekend I [plan|want] to try {hobby}"),
            (
                "{hobby} is [great|fun], [how often do you do it|who joins you|when did you start]?",
                "[Sounds great|Lovely], {hobby} makes people [relaxed|happy|healthier].",
            ),
        ),
        (
            ("!I feel {feeling}[ today|]", "!I am so {feeling}", "!why am I always {feeling}?"),
            (
                "When you feel {feeling}, [listen to music|take a walk|drink some tea|rest early|talk to a friend].",
                "I see, being {feeling} is [quite normal|fine], [do you want to talk|I am with you].",
            ),
        ),
        (
            (
                "!what should I eat for dinner?",
                "!recommend a dish",
                "!how about {food} for lunch?",
                "!I want to eat {food}",
            ),
            (
                (
                    "[Why not try|I suggest|You could have] {food}[ with "
                    "some fruit|, easy and tasty|, and a bowl of soup]."
                ),
                "{food} [is a good choice|smells nice], [use less salt|enjoy it].",
            ),
        ),
        (
            ("!is it {weather} in {city}?", "!how is the weather in {city}?"),
            (
                "It is {weather} in {city}, [look outside before you go|dress well|drink water].",
                "I hear {city} is {weather}.",
            ),
        ),
        (
            ("!is {city} [fun|worth a visit]?", "!I want to travel to {city}"),
            (
                (
                    "{city} is [beautiful|lively|interesting], [go in "
                    "{season}|best in {season}], and [try|eat] {food} there."
                ),
                "For {city}, [{season} is best|stay two days].",
            ),
        ),
        (
            ("!what is your favorite color?", "!which color do you like?"),
            ("I like {color}, [it feels like {season}|it is easy on the eyes].",),
        ),
        (
            ("!do you like a {animal}?", "!I have a {animal} at home"),
            (
                "A {animal} is [cute|smart|funny], [I like it|what is its name].",
                "Of course, a {animal} is [so {trait}|a joy].",
            ),
        ),
        (
            ("!who are you?", "!what is your name?", "!introduce yourself"),
            (
                "I am Pebble, a [small|little] assistant [on this device|that lives here].",
                "My name is Pebble, [I can chat and help with devices|at your service].",
            ),
        ),
        (
            ("!I am a {job}", "!I want to be a {job}", "!what is it like to be a {job}?"),
            ("{job} is a [good|great|demanding] job, [good luck|keep going].",),
        ),
        (
            ("!tell me a joke", "!make me laugh", "a joke"),
            (
                (
                    "One day a {animal} went to buy {food}. How many? asked the owner. The {animal} "
                    "said: [I only came for {hobby}|{n} to start with|looking is free, right]."
                ),
            ),
        ),
        (
            ("!what can I do in {season}?", "!where to go in {season}?"),
            ("{season} is good for {hobby}, [or|and] you could visit {city}.",),
        ),
        (
            ("!give me some advice on {hobby}", "!how do I get better at {hobby}?"),
            (
                (
                    "To get better at {hobby}: first, find a good [teacher|friend]; second, practise "
                    "{n} minutes a day; third, [rest well|write down your progress|talk to others]."
                ),
            ),
        ),
    ),
}

_FACTS: Final[dict[Lang, str]] = {
    "zh": (
        "中国的首都/北京 法国的首都/巴黎 日本的首都/东京 英国的首都/伦敦 "
        "德国的首都/柏林 意大利的首都/罗马 俄罗斯的首都/莫斯科 美国的首都/华盛顿 "
        "西班牙的首都/马德里 韩国的首都/首尔 泰国的首都/曼谷 埃及的首都/开罗 "
        "澳大利亚的首都/堪培拉 加拿大的首都/渥太华 最大的海洋/太平洋 最高的山/珠穆朗玛峰 "
        "最长的河/尼罗河 最大的动物/蓝鲸 跑得最快的动物/猎豹 离太阳最近的行星/水星 "
        "最大的行星/木星 水的沸点/一百度 一年有几个月/十二个月 一天有几小时/二十四小时 "
        "一周有几天/七天 彩虹有几种颜色/七种 蜘蛛有几条腿/八条 "
        "三角形有几条边/三条 中国最长的河/长江 冬天之后的季节/春天"
    ),
    "en": (
        "capital of China/Beijing|capital of France/Paris|capital of Japan/Tokyo|"
        "capital of England/London|capital of Germany/Berlin|capital of Italy/Rome|"
        "capital of Russia/Moscow|capital of the USA/Washington|capital of Spain/Madrid|"
        "capital of Korea/Seoul|capital of Thailand/Bangkok|capital of Egypt/Cairo|"
        "capital of Australia/Canberra|capital of Canada/Ottawa|largest ocean/the Pacific|"
        "highest mountain/Mount Everest|longest river/the Nile|largest animal/the blue whale|"
        "fastest land animal/the cheetah|planet nearest to the sun/Mercury|largest "
        "planet/Jupiter|boiling point of water/100 degrees|number of months in a year/twelve|"
        "number of hours in a day/twenty-four|number of days in a week/seven|"
        "number of colors in a rainbow/seven|number of legs of a spider/eight|"
        "number of sides of a triangle/three|season after winter/spring|color of the sky/blue"
    ),
}
_FACT_FORMS: Final[dict[Lang, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "zh": (
        ("!{q}是什么", "!{q}？", "!请问{q}", "!你知道{q}吗", "!考考你，{q}"),
        ("{q}：{a}。", "是{a}。", "答案是{a}。"),
    ),
    "en": (
        ("!what is the {q}?", "!tell me the {q}", "!the {q}?", "!do you know the {q}?", "!quiz: {q}"),
        ("The {q} is {a}.", "It is {a}.", "The answer is {a}."),
    ),
}

_STORY_ASK: Final[dict[Lang, tuple[str, ...]]] = {
    "zh": ("!讲个故事", "!讲一个关于{animal}的故事", "!睡前故事，主角是{animal}", "说个{animal}的故事"),
    "en": (
        "!tell me a story",
        "!a story about a {animal}",
        "!bedtime story with a {animal}",
        "tell a story about a {animal}",
    ),
}
_STORY: Final[dict[Lang, tuple[str, ...]]] = {
    "zh": (
        "[从前|很久以前|有一年{season}]，有一只{trait}的{animal}，[住在|生活在]{spot}。",
        "[有一天|一天早上|一个下雨的晚上]，它[发现了|捡到了|收到了]{thing}。",
        "{animal}[想|心想]：[这是谁的呢|要是能还给主人就好了|也许它会带来好运]。",
        "[路上|走着走着|没过多久]，它遇到了一位{trait2}的{job}，[两人|他们]一起[吃了{food}|聊起了{hobby}|等天晴]。",
        "{job}说：[谢谢你|原来在你这里|这正是我要找的]，[我送你{thing2}吧|我们做朋友吧|你真{trait}]。",
        (
            "[从此|后来|最后]，{animal}[每天都很快乐|学会了{hobby}|"
            "有了新朋友]，[大家都喜欢它|再也不{feeling}了|故事就到这里]。"
        ),
    ),
    "en": (
        "[Once upon a time|Long ago|One {season}], a {trait} {animal} lived {spot}.",
        "[One day|One morning|On a rainy night], it found {thing}.",
        "The {animal} thought: [whose is it|I should give it back|maybe it brings luck].",
        (
            "[On the way|After a while|Soon], it met a {trait2} {job}, and "
            "they [ate {food}|talked about {hobby}|waited for the sun] together."
        ),
        (
            "The {job} said: [thank you|so you have it|this is what I was "
            "looking for], [take {thing2}|let us be friends|you are so {trait}]."
        ),
        (
            "[From then on|Later|In the end], the {animal} [was happy every day|learned {hobby}|had "
            "a new friend], [and everyone liked it|and was never {feeling} again|and that is all]."
        ),
    ),
}


def _slots(lang: Lang, rng: random.Random) -> dict[str, str]:
    slots = {name: rng.choice(words) for name, words in _WORDS[lang].items()}
    slots["trait2"] = rng.choice(_WORDS[lang]["trait"])
    slots["thing2"] = rng.choice(_WORDS[lang]["thing"])
    slots["name"] = people.person(lang, rng)
    slots["n"] = str(rng.randint(2, 60))
    return slots


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _sample(task: str, lang: Lang, ask: str, answer: str) -> Sample:
    return Sample(task, lang, f"{task}/{ask}", (Message("user", ask),), answer)


def small_talk(lang: Lang, rng: random.Random) -> Sample:
    """Return an everyday exchange. An answer that names what was said must name it right: copying is the skill."""
    asks, answers = rng.choice(_EXCHANGES[lang])
    slots = _slots(lang, rng)
    return _sample(
        "talk", lang, request(rng.choice(asks), lang, rng, slots), _capital(say(rng.choice(answers), rng, slots))
    )


def fact(lang: Lang, rng: random.Random) -> Sample:
    """Return a question with one short answer."""
    question, answer = rng.choice(_FACTS[lang].split(" " if lang == "zh" else "|")).split("/")
    asks, answers = _FACT_FORMS[lang]
    slots = {"q": question, "a": answer}
    return _sample("fact", lang, request(rng.choice(asks), lang, rng, slots), say(rng.choice(answers), rng, slots))


def story(lang: Lang, rng: random.Random) -> Sample:
    """Return a story of three to six sentences: the long answers of the demo."""
    slots = _slots(lang, rng)
    sentences = [line for line in _STORY[lang] if rng.random() < 0.85]
    text = ("" if lang == "zh" else " ").join(say(line, rng, slots) for line in sentences)
    return _sample("story", lang, request(rng.choice(_STORY_ASK[lang]), lang, rng, slots), text)
