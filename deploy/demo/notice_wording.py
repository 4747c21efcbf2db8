# ruff: noqa: SIM905 - word lists read better as text
"""What notifications say and which fact of each matters. The last text of each kind is kept for unseen phrasings."""

from dataclasses import dataclass
from typing import Final

from deploy.demo.phrasing import Lang

ASK: Final = {
    "zh": (
        "总结一下通知",
        "总结通知",
        "帮我总结这些通知",
        "通知摘要",
        "概括一下这些通知",
        "这些通知说了什么，总结一下",
    ),
    "en": (
        "summarize my notifications",
        "Summarize these notifications",
        "give me a summary of the notifications",
        "Notification summary",
        "sum up these notifications",
        "what do these notifications say? summarize",
    ),
}


@dataclass(frozen=True, slots=True)
class NoticeKind:
    """A kind of notification. `app` is None for messages from people, whose app and sender are drawn."""

    id: str
    app: str | None
    texts: tuple[str, ...]
    fact: str


PERSON_APPS: Final = {
    "zh": ("微信", "短信", "邮件", "钉钉", "QQ"),
    "en": ("Messages", "Mail", "Chat", "WhatsApp", "Teams"),
}

ZH_ITEMS: Final = (
    "合同 雨伞 身份证 电脑 钥匙 牛奶 水果 面包 充电器 相机 药 蛋糕 发票 护照 文件 礼物 球拍 鸡蛋 耳机 图纸 样品 门票"
).split()
EN_ITEMS: Final = (
    "contract|umbrella|passport|laptop|keys|milk|fruit|bread|charger|"
    "camera|medicine|cake|invoice|tickets|documents|gift|racket|"
    "eggs|headphones|drawings|samples|notebook"
).split("|")
ZH_DAYS: Final = "今天 明天 后天 周一 周二 周三 周四 周五 周六 周日 今晚 明早".split()
EN_DAYS: Final = "today|tomorrow|Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday|tonight".split("|")
ZH_WEATHER: Final = "大雨 小雨 暴雪 大风 晴天 多云 大雾 雷阵雨 高温 沙尘".split()
EN_WEATHER: Final = "heavy rain|light rain|snow|strong wind|sunshine|clouds|fog|thunderstorms|heat|hail".split("|")
ZH_EVENTS: Final = "产品评审 牙医预约 项目周会 瑜伽课 家长会 面试 体检 生日聚餐 钢琴课 客户拜访 团队培训 看房".split()
EN_EVENTS: Final = (
    "design review|dentist appointment|weekly meeting|yoga class|"
    "parents evening|interview|checkup|birthday dinner|piano lesson|"
    "client visit|team training|house viewing"
).split("|")
ZH_STATES: Final = "电量低 离线 运行异常 需要清洁 检测到异动 滤网到期".split()
EN_STATES: Final = "battery low|offline|not responding|needs cleaning|motion detected|filter expired".split("|")
ZH_FEES: Final = "电费 水费 话费 燃气费 物业费 宽带费".split()
EN_FEES: Final = "electricity|water|phone|gas|rent|internet".split("|")

KINDS: Final[dict[Lang, tuple[NoticeKind, ...]]] = {
    "zh": (
        NoticeKind(
            "meeting",
            None,
            (
                "[你好，|那个，|]会议[改到|挪到|推迟到]{day}{time}了[，别迟到|，请准时|]",
                "[通知一下，|]我们的会[换到|改成|提前到]{day}{time}[开|]",
                "原来的会取消，{day}{time}再开",
            ),
            "会议改到{day}{time}",
        ),
        NoticeKind(
            "bring",
            None,
            (
                "[记得|别忘了|麻烦]带[上|]{item}[，谢谢|，很重要|]",
                "来的时候[把|带着]{item}[带上|]",
                "今天要用{item}，务必带来",
            ),
            "带{item}",
        ),
        NoticeKind(
            "meet",
            None,
            (
                "{day}{time}在{place}[见|碰头|集合][，可以吗|，不见不散|]",
                "[我们|大家]{day}{time}[到|去]{place}[会合|门口见]",
                "{place}，{day}{time}，我等你",
            ),
            "{day}{time}{place}见",
        ),
        NoticeKind(
            "late",
            None,
            (
                "我[大概|可能|]晚{n}分钟到[，不好意思|，你们先开始|]",
                "[路上堵车|地铁晚点]，[要|得]迟到{n}分钟",
                "抱歉，{n}分钟后才能到",
            ),
            "晚到{n}分钟",
        ),
        NoticeKind(
            "placed",
            None,
            (
                "{item}[已经|]放在{place}了[，记得拿|]",
                "你的{item}[落在|忘在|在]{place}[了|]",
                "{place}那边有你的{item}",
            ),
            "{item}在{place}",
        ),
        NoticeKind(
            "lend",
            None,
            (
                "[能不能|可以|能]借我{amount}元[吗|]",
                "[手头紧|急用]，[先|]借{amount}元[，下周还|]",
                "想跟你借{amount}元周转",
            ),
            "借{amount}元",
        ),
        NoticeKind(
            "trip",
            None,
            ("{day}[一起|]去{place}[玩|逛逛|吧][？|]", "[约你|想约你]{day}去{place}", "{day}有空吗，去{place}转转"),
            "{day}去{place}",
        ),
        NoticeKind(
            "buy",
            None,
            ("[下班|回家]路上买[点|]{item}[回来|]", "家里没{item}了，[买一点|带点回来]", "顺路捎些{item}"),
            "买{item}",
        ),
        NoticeKind(
            "parcel",
            "快递",
            (
                "您的包裹已到{place}[驿站|快递柜|]，取件码{code}[，请尽快领取|]",
                "[包裹|快件]已[存放|送达]{place}，凭{code}取件",
                "取件码{code}，包裹在{place}等您",
            ),
            "{place}取件码{code}",
        ),
        NoticeKind(
            "food",
            "外卖",
            (
                "骑手正在[配送|赶来]，预计{time}送达",
                "您的[订单|餐品]将于{time}送到[，请留意电话|]",
                "商家已出餐，{time}到",
            ),
            "{time}送达",
        ),
        NoticeKind(
            "spend",
            "银行",
            (
                "您尾号{tail}的[账户|储蓄卡|信用卡]支出{amount}元[，余额{rest}元|]",
                "[尾号|账户]{tail}[消费|付款]{amount}元",
                "从{tail}卡扣款{amount}元",
            ),
            "支出{amount}元",
        ),
        NoticeKind(
            "income",
            "银行",
            (
                "您尾号{tail}的[账户|储蓄卡]收入{amount}元[，余额{rest}元|]",
                "[尾号|账户]{tail}[到账|转入]{amount}元",
                "{tail}卡入账{amount}元",
            ),
            "收入{amount}元",
        ),
        NoticeKind(
            "weather",
            "天气",
            (
                "{day}[有|将有]{weather}，气温{low}到{high}度[，请注意出行|]",
                "[预报|提醒]：{day}{weather}，{low}至{high}度",
                "{weather}将在{day}到来，最低{low}度，最高{high}度",
            ),
            "{day}{weather}，{low}-{high}度",
        ),
        NoticeKind(
            "event",
            "日历",
            ("{time} {event}[，地点{place}|]", "[提醒|即将开始]：{event}，{time}", "{event}定在{time}"),
            "{time}{event}",
        ),
        NoticeKind(
            "gate",
            "航班",
            (
                "{flight}[登机口改为|的登机口变更为|请到登机口]{gate}[，请留意广播|]",
                "[请注意，|]{flight}在{gate}登机",
                "{gate}是{flight}新的登机口",
            ),
            "{flight}登机口{gate}",
        ),
        NoticeKind(
            "delay",
            "航班",
            (
                "{flight}[延误至|推迟到|晚点到]{time}[，敬请谅解|]",
                "[抱歉，|]{flight}将于{time}起飞[，有延误|]",
                "因天气原因，{flight}改在{time}起飞",
            ),
            "{flight}延误到{time}",
        ),
        NoticeKind(
            "house",
            "智能家居",
            ("{room}的{device}{state}", "[注意|提醒]：{room}{device}{state}[，请检查|]", "{state}：{room}，{device}"),
            "{room}{device}{state}",
        ),
        NoticeKind(
            "bill",
            "缴费",
            (
                "您{month}月的{fee}为{amount}元，请[于|在]{day}前缴纳",
                "{fee}账单{amount}元，{day}[到期|截止]",
                "待缴{fee}{amount}元，截止{day}",
            ),
            "{day}前缴{fee}{amount}元",
        ),
        NoticeKind(
            "code",
            "验证码",
            ("验证码{otp}，{n}分钟内有效[，请勿泄露|]", "[您的|本次]验证码[是|为]{otp}", "请输入{otp}完成验证"),
            "{otp}",
        ),
        NoticeKind(
            "steps",
            "健康",
            ("[今天|今日|]走了{steps}步[，加油|，完成目标|]", "[步数|运动]：{steps}步", "您已累计步行{steps}步"),
            "{steps}步",
        ),
    ),
    "en": (
        NoticeKind(
            "meeting",
            None,
            (
                "[hi, |hey, |]the meeting is [moved|postponed|shifted] to {day} {time}[, don't be late|]",
                "our meeting [will be|is now] {day} [at |]{time}",
                "we cancel the old slot and meet {day} {time}",
            ),
            "meeting moved to {day} {time}",
        ),
        NoticeKind(
            "bring",
            None,
            (
                "[remember to|don't forget to|please] bring the {item}[, thanks|]",
                "[can you|could you] bring the {item}[ along|]?",
                "we need the {item}, so take it with you",
            ),
            "bring {item}",
        ),
        NoticeKind(
            "meet",
            None,
            (
                "[let's meet|meet me|see you] at {place} {day} {time}[, ok?|]",
                "{day} {time} at {place}[, all of us|]",
                "I wait for you {day} {time}, {place}",
            ),
            "meet {day} {time} at {place}",
        ),
        NoticeKind(
            "late",
            None,
            (
                "I will be {n} minutes late[, sorry|, start without me|]",
                "[traffic|train delay], [late by|running late by] {n} minutes",
                "sorry, there in {n} minutes",
            ),
            "{n} minutes late",
        ),
        NoticeKind(
            "placed",
            None,
            (
                "[the|your] {item} is at {place}[, pick it up|]",
                "I left [the|your] {item} at {place}",
                "look for your {item} in {place}",
            ),
            "{item} at {place}",
        ),
        NoticeKind(
            "lend",
            None,
            (
                "[can|could] you lend me {amount} dollars?",
                "I need to borrow {amount} dollars[, back next week|]",
                "short on cash, could use {amount} dollars",
            ),
            "borrow ${amount}",
        ),
        NoticeKind(
            "trip",
            None,
            (
                "[let's go|shall we go|want to go] to {place} {day}?",
                "a trip to {place} {day}[, join us|]?",
                "free {day}? we could visit {place}",
            ),
            "{day} trip to {place}",
        ),
        NoticeKind(
            "buy",
            None,
            (
                "[please|can you] buy [some|] {item} on the way home",
                "we are out of {item}, [get some|buy it]",
                "pick up {item} at the shop",
            ),
            "buy {item}",
        ),
        NoticeKind(
            "parcel",
            "Parcel",
            (
                "your parcel is at {place}, pickup code {code}[, collect it soon|]",
                "[package|parcel] [delivered|arrived] at {place}, use code {code}",
                "code {code} opens your box at {place}",
            ),
            "{place} code {code}",
        ),
        NoticeKind(
            "food",
            "Food",
            (
                "your [order|meal] arrives at {time}",
                "the rider is [coming|on the way], expected {time}",
                "ready to eat by {time}",
            ),
            "arrives {time}",
        ),
        NoticeKind(
            "spend",
            "Bank",
            (
                "card {tail}: [paid|spent] {amount} dollars[, balance {rest}|]",
                "a payment of {amount} dollars from [account|card] {tail}",
                "{amount} dollars charged to {tail}",
            ),
            "spent ${amount}",
        ),
        NoticeKind(
            "income",
            "Bank",
            (
                "account {tail}: received {amount} dollars[, balance {rest}|]",
                "[deposit|transfer] of {amount} dollars to [account|card] {tail}",
                "{amount} dollars credited to {tail}",
            ),
            "received ${amount}",
        ),
        NoticeKind(
            "weather",
            "Weather",
            (
                "{weather} {day}, {low} to {high} degrees[, take care|]",
                "[forecast|alert]: {day} {weather}, {low}-{high} degrees",
                "expect {weather} {day}, low {low}, high {high}",
            ),
            "{day} {weather}, {low}-{high} degrees",
        ),
        NoticeKind(
            "event",
            "Calendar",
            ("{time} {event}[, at {place}|]", "[reminder|starting soon]: {event}, {time}", "{event} is due at {time}"),
            "{time} {event}",
        ),
        NoticeKind(
            "gate",
            "Flights",
            (
                "{flight} [boards at|gate changed to|now at] gate {gate}[, please listen|]",
                "[attention, |]go to gate {gate} for {flight}",
                "gate {gate} is now used for {flight}",
            ),
            "{flight} gate {gate}",
        ),
        NoticeKind(
            "delay",
            "Flights",
            (
                "{flight} is [delayed until|postponed to|late, new time] {time}[, we are sorry|]",
                "[sorry, |]{flight} will leave at {time}[ with a delay|]",
                "bad weather: {flight} takes off at {time}",
            ),
            "{flight} delayed to {time}",
        ),
        NoticeKind(
            "house",
            "Home",
            (
                "{room} {device} {state}",
                "[warning|notice]: {room} {device} {state}[, please check|]",
                "{state}: {device}, {room}",
            ),
            "{room} {device} {state}",
        ),
        NoticeKind(
            "bill",
            "Bills",
            (
                "your {fee} bill is {amount} dollars, [due|pay before] {day}",
                "{fee}: {amount} dollars due {day}",
                "pay {amount} dollars for {fee} by {day}",
            ),
            "{fee} ${amount} by {day}",
        ),
        NoticeKind(
            "code",
            "Security",
            (
                "code {otp}, valid for {n} minutes[, do not share it|]",
                "your [verification|login] code is {otp}",
                "enter {otp} to sign in",
            ),
            "{otp}",
        ),
        NoticeKind(
            "steps",
            "Health",
            (
                "[today you walked|you walked|] {steps} steps[, well done|]",
                "[activity|progress]: {steps} steps",
                "{steps} steps so far, keep moving",
            ),
            "{steps} steps",
        ),
    ),
}
