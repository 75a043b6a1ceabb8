"""The invented shop of `stream.sample`: what its catalogue and its visitors' queries are put together from."""

from __future__ import annotations

from typing import NamedTuple


class Product(NamedTuple):
    """A kind of thing: what people want it for, and the variants that it is sold in."""

    uses: list[str]
    variants: list[str]


class Category(NamedTuple):
    """An interest that a visitor may have. Every brand sells every product."""

    brands: list[str]
    products: dict[str, Product]


def _category(text: str) -> Category:
    """Read the brands from the first line, and a product from each other one: name | uses | variants."""
    first, *lines = text.strip().splitlines()
    products: dict[str, Product] = {}
    for line in lines:
        name, uses, variants = (part.strip() for part in line.split("|"))
        products[name] = Product(uses.split(", "), variants.split(", "))
    return Category(first.strip().split(", "), products)


CATEGORIES = {
    "trail-running": _category("""
        Fellstride, Morrowick, Skarn & Lane, Pinegrit, Velotarn
        Trail Running Shoes | muddy hills, rocky paths, a first ultra marathon | Women's, Men's, Wide Fit, Waterproof
        Running Vest | long runs, carrying water | Small, Medium, Large, 12 Litres
        Head Torch | running at night, dark winter evenings | Rechargeable, 400 Lumen, 900 Lumen, Ultralight
        Running Jacket | wet weather, windy ridges | Women's, Men's, Waterproof, Reflective
        Merino Running Socks | blisters, long distances | Ankle, Crew, Winter, Three Pairs
        Soft Flask | drinking on the run, thirsty summer days | 250 ml, 500 ml, With Straw, Set of Two
    """),
    "espresso": _category("""
        Crematto, Brunavel, Ottorino Vale, Kaffehold, Nerolume
        Espresso Machine | a small kitchen, beginners, good crema | Dual Boiler, Compact, Matt Black, Brushed Steel
        Burr Coffee Grinder | fine espresso grind, quiet mornings | Hand Crank, Electric, Single Dose, Travel
        Milk Frothing Jug | latte art, flat whites | 350 ml, 600 ml, Matt Black, With Thermometer
        Coffee Tamper | an even puck, a tidy workflow | 58 mm, 54 mm, Walnut, Calibrated
        Espresso Beans | a dark roast, low bitterness | 1 kg, Decaf, Dark Roast, Single Origin
        Coffee Scale | weighing shots, timing pour-overs | With Timer, Pocket, Rechargeable, Waterproof
    """),
    "board-games": _category("""
        Meeplewright, Oddlantern, Hexhaven, Copper Kraken, Tumbledie
        Cooperative Dungeon Board Game | four players, game night, solo play | Second Edition, Deluxe, Expansion
        Railway Strategy Game | long evenings, two players | Europe, Alpine Lines, Anniversary, Night Trains
        Party Word Game | big groups, christmas with the family | Family Edition, Travel Edition, Picture Cards
        Deck Building Card Game | two players, quick rounds | Base Game, Expansion, Deluxe, Storm Season
        Murder Mystery Puzzle Game | a dinner party, couples | Case One, Case Two, The Lighthouse, The Opera
        Farming Tile Game | families, children from eight | Family Edition, Travel Edition, Expansion
    """),
    "gardening": _category("""
        Thornbury Spade, Larkroot, Mossandale, Greenwether, Petalforge
        Pruning Shears | roses, thick branches | Bypass, Ratchet, Left Handed, Small Hands
        Tomato Seeds | a greenhouse, balcony pots | Cherry, Beefsteak, Heirloom Mix, Early Ripening
        Raised Garden Bed | vegetables, a bad back | Cedar, Galvanised Steel, With Legs, 120 cm
        Garden Hose | watering the lawn, freezing winters | 15 m, 30 m, Expandable, With Reel
        Compost Bin | kitchen scraps, small gardens | 200 Litres, 400 Litres, Tumbling, Worm Farm
        Weeding Fork | dandelions, clay soil | Stainless, Long Handle, Ash Handle, Hand Size
    """),
    "home-office": _category("""
        Deskavel, Upriight, Halden Works, Quietform, Lumendesk
        Standing Desk | back pain, two monitors | Walnut, White, 160 cm, Hand Crank
        Ergonomic Office Chair | sitting all day, tall people | Mesh, With Headrest, Extra Tall, Armless
        Monitor Arm | a heavy screen, a thin desk | Single, Dual, Gas Spring, White
        Mechanical Keyboard | quiet typing, programmers | Wireless, Silent Switches, Split, Compact
        Desk Lamp | video calls, reading documents | Dimmable, Clamp, Warm Light, With USB
        Noise Cancelling Headset | online meetings, a loud home | Wireless, Wired, One Ear, With Charging Stand
    """),
    "photography": _category("""
        Aperon, Lichtwerk Nord, Fokusaar, Silverlatent, Okulus Prime
        Mirrorless Camera | travel, beginners, filming | Body Only, Mark II, With Kit Lens, Black
        Portrait Lens | low light, weddings | 50 mm, 85 mm, 135 mm, Weather Sealed
        Camera Tripod | landscapes, long exposures | Carbon, Aluminium, Travel, With Ball Head
        Camera Backpack | hiking with gear, flights | 20 Litres, 35 Litres, Roll Top, Grey
        Neutral Density Filter | waterfalls, bright sun | 67 mm, 77 mm, Variable, Set of Three
        Instant Film | parties, retro pictures | Colour, Black and White, Wide, Twin Pack
    """),
    "baking": _category("""
        Crumb & Ember, Doughlie, Hearthmill, Sifterby, Ovenwren
        Stand Mixer | bread dough, whipping cream | 5 Litres, 7 Litres, Cream White, With Dough Hook
        Sourdough Proofing Basket | a crusty loaf, beginners | Round, Oval, 25 cm, With Liner
        Springform Cake Tin | cheesecake, birthdays | 20 cm, 26 cm, Non-Stick, Glass Base
        Rye Bread Flour | sourdough starter, dark bread | Organic, Wholegrain, 1 kg, 5 kg
        Piping Bag Set | decorating cupcakes, macarons | Reusable, 24 Tips, Russian Tips, For Beginners
        Rolling Pin | pastry, cookies with children | Beech, Marble, Adjustable, French Style
    """),
    "cycling": _category("""
        Rouleau Nine, Spokeham, Derailia, Cadenza Cycles, Gravelkin
        Gravel Bike | bikepacking, forest roads | Carbon, Aluminium, Small Frame, Large Frame
        Bike Helmet | city commuting, long hair | Matt Black, Reflective, With Visor, Children's
        Tubeless Bicycle Tyre | punctures, wet roads | 700 x 40, 650 x 47, Tan Wall, Winter
        Padded Cycling Shorts | long rides, saddle sores | Women's, Men's, Bib, With Pockets
        Bike Light Set | winter commutes, country lanes | USB Rechargeable, Front and Rear, 1000 Lumen, Dynamo
        Bicycle Repair Kit | flat tyres, touring | Saddle Bag, With Pump, Tubeless, Pocket Size
    """),
    "camping": _category("""
        Northbivvy, Emberwick Camp, Tarpaulo, Wolkenzelt, Loonlake
        Backpacking Tent | heavy rain, quick pitching | One Person, Two Person, Ultralight, Four Season
        Down Sleeping Bag | cold nights, small packs | Summer, Winter, Long, Women's
        Camping Stove | boiling water, windy places | Gas, Multi Fuel, With Pot, Titanium
        Sleeping Mat | side sleepers, rough ground | Inflatable, Foam, Insulated, Double
        Camping Lantern | the tent, power cuts | Solar, Rechargeable, Mini, Warm Light
        Cool Box | summer weekends, festivals | 12 Litres, 30 Litres, Electric, With Wheels
    """),
    "guitars": _category("""
        Harrowtone, Calderwood Luthiers, Fretmoor, Six Wren, Ampersound
        Acoustic Guitar | fingerpicking, small hands, beginners | Cedar Top, Left Handed, Three Quarter, Twelve String
        Electric Guitar | blues, heavy metal | Sunburst, Left Handed, Seven String, Semi-Hollow
        Guitar Amplifier | bedroom practice, small gigs | 5 Watt, 20 Watt, Valve, Battery Powered
        Overdrive Pedal | warm distortion, classic rock | Vintage, Mini, Dual, Hand Wired
        Guitar Strings | a bright sound, sore fingers | Nylon, Light Gauge, Phosphor Bronze, Three Sets
        Clip-On Tuner | ukulele and guitar, rehearsals | Rechargeable, Chromatic, Mini, Twin Pack
    """),
    "childrens-books": _category("""
        Little Lantern Press, Puddle & Finch, Bramblekite, Sleepy Otter, Moonpocket
        Bedtime Picture Book | toddlers, falling asleep | The Sleepy Bear, Goodnight Harbour, Board Book, Bilingual
        Dinosaur Fact Book | five year olds, curious children | Illustrated, With Flaps, Fossil Hunters, Hardcover
        First Reading Stories | learning to read, first graders | Level One, Level Two, Farm Friends, School Days
        Dragon Adventure Novel | ten year olds, reading aloud | Volume One, Volume Two, The Ash Crown, Box Set
        Counting and Numbers Book | preschool, learning to count | Board Book, With Flaps, Up to Twenty, Bilingual
        Sticker Activity Book | long car rides, rainy days | Under the Sea, In the City, Animals, Space
    """),
    "video-games": _category("""
        Glitchmoor, Pixel Heron, Ironvolt, Nightarcade, Quasarfox
        Space Exploration Game | an open world, playing alone | Standard Edition, Gold Edition, Remastered, Far Rim
        Football Manager Simulation | career mode, this season | Season 25, Season 26, Classic, Handheld
        Zombie Survival Shooter | online co-op, horror fans | Chapter Two, Complete, Remastered, Gold Edition
        Kart Racing Game | split screen, kids | Turbo Cup, Deluxe, Beach Tracks, Standard Edition
        Fantasy Role Playing Game | a long story, character builds | The Hollow Throne, Gold Edition, Remastered
        Retro Platform Game | speedruns, pixel art | Collection, Chapter Two, Anniversary, Standard Edition
    """),
}
