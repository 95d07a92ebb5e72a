"""The facts that the demo model learns by heart, and the word lists that its other skills draw from."""


def words(text: str) -> list[str]:
    """A word list written as text."""
    return text.split()


def _entries(text: str) -> list[str]:
    return text.split("|")


CAPITALS: dict[str, str] = dict(
    entry.strip().split(":")
    for entry in _entries("""
    Afghanistan:Kabul|Albania:Tirana|Algeria:Algiers|Andorra:Andorra la Vella|Angola:Luanda|Argentina:Buenos Aires|
    Armenia:Yerevan|Australia:Canberra|Austria:Vienna|Azerbaijan:Baku|Bahrain:Manama|Bangladesh:Dhaka|
    Barbados:Bridgetown|Belarus:Minsk|Belgium:Brussels|Belize:Belmopan|Benin:Porto-Novo|Bhutan:Thimphu|Bolivia:Sucre|
    Botswana:Gaborone|Brazil:Brasilia|Bulgaria:Sofia|Cambodia:Phnom Penh|Cameroon:Yaounde|Canada:Ottawa|
    Chad:N'Djamena|Chile:Santiago|China:Beijing|Colombia:Bogota|Costa Rica:San Jose|Croatia:Zagreb|Cuba:Havana|
    Cyprus:Nicosia|Denmark:Copenhagen|Ecuador:Quito|Egypt:Cairo|Estonia:Tallinn|Ethiopia:Addis Ababa|Fiji:Suva|
    Finland:Helsinki|France:Paris|Gabon:Libreville|Georgia:Tbilisi|Germany:Berlin|Ghana:Accra|Greece:Athens|
    Guatemala:Guatemala City|Guinea:Conakry|Guyana:Georgetown|Haiti:Port-au-Prince|Honduras:Tegucigalpa|
    Hungary:Budapest|Iceland:Reykjavik|India:New Delhi|Indonesia:Jakarta|Iran:Tehran|Iraq:Baghdad|Ireland:Dublin|
    Israel:Jerusalem|Italy:Rome|Jamaica:Kingston|Japan:Tokyo|Jordan:Amman|Kazakhstan:Astana|Kenya:Nairobi|
    Kuwait:Kuwait City|Kyrgyzstan:Bishkek|Laos:Vientiane|Latvia:Riga|Lebanon:Beirut|Lesotho:Maseru|Liberia:Monrovia|
    Libya:Tripoli|Lithuania:Vilnius|Luxembourg:Luxembourg City|Madagascar:Antananarivo|Malawi:Lilongwe|
    Malaysia:Kuala Lumpur|Maldives:Male|Mali:Bamako|Malta:Valletta|Mauritania:Nouakchott|Mauritius:Port Louis|
    Mexico:Mexico City|Moldova:Chisinau|Monaco:Monaco|Mongolia:Ulaanbaatar|Montenegro:Podgorica|Morocco:Rabat|
    Mozambique:Maputo|Myanmar:Naypyidaw|Namibia:Windhoek|Nepal:Kathmandu|New Zealand:Wellington|Nicaragua:Managua|
    Niger:Niamey|Nigeria:Abuja|Norway:Oslo|Oman:Muscat|Pakistan:Islamabad|Panama:Panama City|Paraguay:Asuncion|
    Peru:Lima|Philippines:Manila|Poland:Warsaw|Portugal:Lisbon|Qatar:Doha|Romania:Bucharest|Russia:Moscow|
    Rwanda:Kigali|Saudi Arabia:Riyadh|Senegal:Dakar|Serbia:Belgrade|Singapore:Singapore|Slovakia:Bratislava|
    Slovenia:Ljubljana|Somalia:Mogadishu|South Korea:Seoul|Spain:Madrid|Sudan:Khartoum|Suriname:Paramaribo|
    Sweden:Stockholm|Switzerland:Bern|Syria:Damascus|Tajikistan:Dushanbe|Tanzania:Dodoma|Thailand:Bangkok|Togo:Lome|
    Tunisia:Tunis|Turkey:Ankara|Turkmenistan:Ashgabat|Uganda:Kampala|Ukraine:Kyiv|Uruguay:Montevideo|
    Uzbekistan:Tashkent|Venezuela:Caracas|Vietnam:Hanoi|Yemen:Sanaa|Zambia:Lusaka|Zimbabwe:Harare
    """)
)

# Names that need an article or are known under several forms; a capital with two countries belongs to the first.
MORE_CAPITALS: dict[str, str] = {
    "the United States": "Washington",
    "the USA": "Washington",
    "the United Kingdom": "London",
    "England": "London",
    "Scotland": "Edinburgh",
    "the Netherlands": "Amsterdam",
    "South Africa": "Pretoria",
    "the Czech Republic": "Prague",
    "Czechia": "Prague",
    "North Korea": "Pyongyang",
    "the Philippines": "Manila",
    "the United Arab Emirates": "Abu Dhabi",
    "El Salvador": "San Salvador",
    "the Dominican Republic": "Santo Domingo",
    "Bosnia": "Sarajevo",
    "Papua New Guinea": "Port Moresby",
    "the Bahamas": "Nassau",
}

OPPOSITE_PAIRS: list[list[str]] = [
    pair.split("/")
    for pair in words("""
    hot/cold big/small up/down left/right day/night black/white fast/slow good/bad happy/sad rich/poor old/young
    light/dark open/closed full/empty early/late easy/hard high/low long/short strong/weak wet/dry loud/quiet
    clean/dirty thick/thin wide/narrow deep/shallow sweet/bitter true/false first/last in/out on/off over/under
    win/lose buy/sell push/pull start/stop give/take love/hate come/go laugh/cry float/sink arrive/leave
    remember/forget asleep/awake alive/dead brave/afraid cheap/expensive heavy/weightless inside/outside north/south
    east/west summer/winter morning/evening yes/no always/never before/after above/below near/far same/different
    safe/dangerous smooth/rough sharp/blunt tight/loose tall/tiny top/bottom front/back begin/end borrow/lend
    build/destroy polite/rude lucky/unlucky friend/enemy hero/villain success/failure peace/war question/answer
    simple/complex public/private modern/ancient accept/refuse
    """)
]

OPPOSITES: dict[str, str] = {a: b for first, second in OPPOSITE_PAIRS for a, b in ((first, second), (second, first))}

COLOURS = words("red blue green yellow purple orange pink brown black white grey gold silver turquoise violet")

ANIMALS = words("""
    cat dog fox bear lion tiger horse rabbit owl frog mouse wolf eagle whale dolphin turtle monkey panda zebra penguin
    sheep goat duck snake spider bee ant camel parrot deer
    """)

FOODS = words("""
    pizza pasta rice soup salad bread cheese apple banana cake chocolate curry sushi mango honey noodles potato tomato
    carrot pie
    """)

NAMES = words("""
    Ana Ben Clara David Emma Felix Grace Hugo Iris Jack Kate Leo Maya Noah Olga Paul Quinn Rosa Sam Tina Uma Victor
    Wendy Xavier Yara Zoe Alice Bob Carol Daniel Elena Frank Greta Henry Ivan Julia Karl Laura Marco Nina Oscar
    Petra Ravi Sofia Tom Vera Will Yusuf Anton Bella Chen Dora Erik Fatima Gina Hana Igor Jonas Kira Lena Mila Nadia
    Otto Pia Rita Simon Tara Ulrich Viola Wanda Yuki Zara Adam Boris Celine Diego Eva Finn Gloria Hassan Ida Anna
    Anne Anja Maria Peter James John Mary Linda Robert Susan Mark Lisa Michael Sarah Max Lucas Nora Mia Liam Ella
    Ruby Theo Omar Aisha Kenji Mei Raj Priya Jose Carlos Ines Luis Sven Astrid Bjorn Freya Nils Pavel Katya Dmitri
    Milan Zoltan
    """)

OBJECTS = words("""
    air airport almond anchor autumn bag baker bakery balcony barley barn basket battery beach berry bicycle
    birthday blanket boat book bottle box bridge bridle brush bucket bush butter button camera candle car carpet
    castle chair chapter cherry chimney cinnamon circle circuit city clock cloud coat coffee color compass computer
    copper corn cotton crystal curtain dance dancer desert diamond doctor door dragon drawer dream earth engine
    factory farmer feather fire floor flower forest fork game garden garlic ghost giant ginger glass glove grammar
    grape grass guitar hallway hammer harbor harvest hat hospital hour house island juice jungle key keyboard king
    kitchen knife ladder lamp language lantern leaf leather lemon letter library lock machine magnet map marble
    market meadow metal milk minute mirror monster month moon mountain museum music nail needle number nurse ocean
    office onion orchard paint painter paper paragraph party peach pear pebble pencil pepper pharmacy phone piano
    pillow pilot plane planet plate plough plum pocket poem present prince pumpkin puzzle queen radio rain riddle
    river road rocket roof root rope saddle sailor salt sand scarf school screen secret seed sentence shape shelf
    shirt shoe signal silk singer sky snow soldier song spoon spring square stable stadium star station stone storm
    story student sugar sun table tea teacher theater thread thunder tower tractor train treasure tree valley
    vanilla village vineyard wall walnut watch water week wheat wheel whistle wind window wizard wood wool writer
    year
    """)

WORDS: list[str] = sorted({*OPPOSITES, *COLOURS, *ANIMALS, *FOODS, *OBJECTS})

# Cities of one plain word: the ones that a tool call or a memory can carry without extra punctuation.
CITIES: list[str] = [city for city in CAPITALS.values() if city.isalpha()]

# Frequent words of the questions and answers.  The tokenizer glues the space in front to them, which saves a fifth of
# all tokens, and no word that is to be copied should be one.
FUNCTION_WORDS = words("""
    the is of a an and to in you your my me I as what which with for do not know that it was very have has from
    opposite capital country city word name are am can may how much plus minus by one or JSON
    language model Windlass demo small yet told remember favourite function functions within tags
    """)

MODEL_NAME = "the Windlass demo model"
