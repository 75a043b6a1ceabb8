"""Sentences of the kind that the encoder meets: queries, titles, questions, descriptions. Written for this project.

`CALIBRATION` sets the ranges of the int8 file; `HELD_OUT`, which it never saw, measures every variant and makes the
parity vectors.
"""

_CALIBRATION = """

a
tv
usb c cable
wireless headphones with noise cancelling
gardn hose 50ft
coffee
coffee grinder burr manual
how do i reset my router?
Cordless drill 18V with two batteries and charger
kids bike 16 inch
Acme QX-900 (2nd gen.) - Black/Silver, 256 GB
cheap flights lisbon to oslo
BLACK FRIDAY!!! -50% on everything
Where is my parcel? It was due on 3/11/2024.
wool socks men size 10
I would like to cancel the subscription that I bought last week, please.
best thriller books of the year
The quiet lighthouse keeper found a letter that had been at sea for forty years.
running shoes for flat feet
iphne charger
4k monitor 27" 144hz ips
vegan protein powder chocolate 2kg
"to be or not to be"
my card was declined at the petrol station
Cast iron skillet, pre-seasoned, 12 inch
xbx controller
toys for 3 year olds
Mountain tent for four people, waterproof to 5,000 mm, with aluminium poles and a porch for two rucksacks
python list comprehension with two loops
Señor Gómez's crème brûlée torch
second hand piano
how to remove red wine from a white carpet
led strip lights 5m rgb
Galaxy Racers: Championship Edition
snow chains 205/55 R16
What is the exchange rate between the euro and the yen today?
organic cotton bedsheets king
lego
war strategy games
the weather tomorrow in the mountains
Blue ceramic planter with drainage hole and saucer, 20 cm
football boots junior
laptop stand adjustable aluminium
is this product suitable for people with a nut allergy?
Introduction to Linear Algebra, Third Edition
gluten free pasta
dog bed large washable
refund
Refund not received after 14 days
an old recording of a string quartet, made in a church
hdmi to displayport adapter
ミルク
Москва
fishing rod and reel combo
yoga mat thick non slip
The mayor said on Tuesday that the bridge will reopen in spring, six months later than planned.
birthday card for grandmother
printer ink 304xl
romantic comedy 1990s
Dragon Harbour II: Return to the Deep (Collector's Box)
electric toothbrush heads 8 pack
mens waterproof jacket hooded navy xl
how long does delivery to Ireland take
plants that need little light
size 42 hiking boots
A lightweight folding chair for the garden, the beach or the balcony; holds up to 120 kg.
bluetooth speaker
baby monitor with camera
#1 rated mattress topper
zzzz qqq xkcd
www.example.com/help?id=77
0123 456 789
cough syrup for children under six
replacement filter for air purifier model AP-200
gaming chair
blender 1000w glass jug
shipping address change
why was i charged twice for one order
super puzzle world
watch strap leather 22mm brown
Learn to paint with watercolours: twelve easy lessons for complete beginners
car roof box
solar panel 100 watts with controller
low sugar breakfast cereal
noise
"""

_HELD_OUT = """
garden furniture set
waterproof phone case
how can I track my order?
wifi extender outdoor
The committee will publish its findings at the end of the month.
mystery novels set in venice
usb microphone for podcasts
Stainless steel water bottle, 750 ml, keeps drinks cold for 24 hours
trainers womens white size 6
nintndo games
my account has been locked after three wrong attempts
compact camera with optical zoom
Castle Builders 3: The Northern Kingdoms
spare key for filing cabinet
what documents do I need to open an account?
hand cream
children's raincoat yellow
Electric kettle 1.7 L with temperature control - matt black
documentaries about the deep sea
the train was late again
external hard drive 2tb
Two cyclists crossed the desert in nineteen days with nothing but a map and four bottles of water.
birthday presents for dad
sofa bed corner left
racing simulator wheel and pedals
exchange a gift without receipt
olive oil extra virgin 5 litre
sci-fi space opera
guitar strings light gauge
Does the warranty cover accidental damage to the screen?
"""

CALIBRATION = tuple(_CALIBRATION.strip("\n").splitlines())
HELD_OUT = tuple(_HELD_OUT.strip("\n").splitlines())
