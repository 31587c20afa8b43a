"""Hold general paragraphs for measuring perplexity; their subjects occur in no retain text."""

from __future__ import annotations

PARAGRAPHS: dict[str, str] = {
    "gardening": """
Tomatoes should be planted deeper than they stood in the pot, because the buried stem grows extra roots. Tie
them to a stake while they are small, pinch out the side shoots every week, and water the soil rather than the
leaves. A layer of straw around the base keeps the moisture even, so that the fruit does not crack.

Compost is made by creatures too small to see. They want a mixture of green and brown: kitchen scraps and cut
grass for protein, dry leaves and torn cardboard for carbon. If the heap smells, it lacks air, so turn it with
a fork. After some months it will have become dark, crumbly earth.

Roses are pruned in late winter, just before the buds begin to swell. Remove dead wood first, then any branch
that crosses another, and cut the rest above a bud that points outward. It feels brutal. By June the bush will
be fuller than before, and nobody will remember the bare sticks of March.

Slugs come at night and prefer seedlings. Copper tape, crushed eggshells and bowls of beer all have their
believers, yet the surest remedy is a flashlight and a bucket. Hedgehogs and toads will help if you leave them
a pile of branches to live in. Ducks help too, but they also like lettuce.

A lawn needs less attention than its owners think. Cut high, it shades its own roots and crowds out weeds; cut
short, it dries and turns yellow. Clippings may stay where they fall. And a corner left alone until August
will surprise you with daisies, grasshoppers and a great many butterflies.
""",
    "astronomy": """
The Moon always shows us the same face. It turns once on its axis in exactly the time it needs to travel
around the Earth, a lock produced by tides over millions of years. The far side is not dark, as songs claim.
It has day and night like the near one; we simply never see it from here.

Looking at stars means looking back in time. Light from the nearest one after the Sun has been on its way for
more than four years, and the faint smudge of the Andromeda galaxy left home over two million years ago. Some
of what we admire tonight may already have changed beyond recognition.

Saturn's rings are wide but astonishingly thin. They stretch farther than half the way to our Moon, yet in
most places they are only some tens of meters thick. They consist of countless lumps of ice, from grains to
boulders the size of a house, each one on its own orbit.

A telescope's main task is to collect light, not to magnify. A mirror twice as wide catches four times as
much, and faint objects appear that no amount of enlargement would reveal. That is why astronomers keep
building larger ones, put them on dry mountain tops, and worry about street lamps.

Comets are dirty icebergs from the edge of the solar system. Far from the Sun they are dark and silent. When
one falls inward, its surface turns to vapor, and a tail of gas and dust streams away from the sunlight, even
when the comet itself is already heading out again.
""",
    "insects": """
Honeybees dance to tell each other where the flowers are. On the vertical comb, straight up stands for the
direction of the sun, and the angle of the waggling run shows how far to the left or right of it the others
should fly. The longer the run lasts, the more distant the meadow.

Ants have no chief. Each worker follows simple rules: pick up food, drop scent on the way home, prefer the
strongest trail. Because short paths are walked more often, their scent grows, and soon the whole column uses
them. The colony solves a problem that none of its members could describe.

A caterpillar does not just grow wings. Inside the pupa most of its tissues dissolve, and small clusters of
cells that have waited since the egg build a new body from the soup. Experiments suggest that some moths
nevertheless remember what they learned before they changed.

Dragonflies are among the most successful hunters known. They catch nearly every prey they chase, because they
do not follow it but fly to the point where it is going to be. Four wings that beat independently allow them
to hover, turn on the spot and even fly backward.

Cicadas spend most of their lives underground, sipping sap from roots. Some species in North America wait
seventeen years and then appear all at once, by the million, to sing, mate and die within weeks. Birds eat
until they can eat no more, and still plenty of them survive.
""",
    "theater": """
Stage fright is ordinary chemistry. The heart races, the mouth dries, and the first line vanishes although it
was there a minute ago. Old actors say that the feeling never goes away and should not, since it sharpens the
senses. They walk around the block, touch the same nail in the wall, and go on.

In the theaters of ancient Greece, thousands of people sat on stone steps cut into a hillside and heard every
word without amplifiers. The actors, all of them men, wore masks with bold features. A chorus commented on the
events, danced, and said aloud what the audience was thinking.

The prompter used to sit in a box at the front edge of the stage, hidden by a little roof. Whenever an actor
stuck, she whispered the next words, just loudly enough. The art lay in recognizing whether a silence was a
hole in the memory or the finest pause of the evening.

Lighting tells the audience where to look. A warm beam from the side gives faces depth, a cold one from above
makes the same room a prison. In the hands of a good designer the changes are so slow that nobody sees them
happen. People only notice that evening has fallen over the painted orchard.

Amateur companies survive on borrowed furniture. The sofa of the baker's wife has appeared in four murder
mysteries, and the school lends its skeleton every autumn. On opening night the mayor sits in the first row,
the door on the set sticks again, and everyone applauds the actress who climbs through the window.
""",
    "bicycles": """
A bicycle is the most efficient vehicle ever built. With the energy of a banana, a rider can cover a distance
that would cost a walker three times as much effort. Thin tires, ball bearings and a chain waste very little,
and the frame of tubes weighs less than a big dog.

Nobody can quite explain in one sentence why a moving bicycle stays upright. Spinning wheels help a little,
the geometry of the fork helps more, and steering does the rest: when the machine leans, it turns into the
fall and catches itself. Children discover the trick without any theory.

To mend a puncture, take the wheel off and pull out the tube. Pump it up, listen, and if necessary hold it
under water until bubbles betray the hole. Roughen the spot, spread the glue thinly, and wait until it no
longer feels wet before pressing the patch on. Impatience is the usual cause of failure.

Early high-wheelers were fast and frightening. The rider sat above a front wheel as tall as a man, and a stone
in the road could send him over the handlebars. When chains and gears allowed two equal wheels, the new design
was advertised as the safety bicycle, and it conquered the world.

Cities that want more cycling need not preach about health. They build lanes that are separated from traffic,
give riders their own green light, and put racks in front of shops. Once a route feels safe to a ten-year-old,
people of every age begin to use it, even in the rain.
""",
    "libraries": """
Libraries existed before paper. Clerks in Mesopotamia pressed signs into wet clay, and collections of such
tablets survived because fires baked them hard. A king who wanted to impress posterity had lists of plants,
prayers and medical advice copied for his palace. We read his overdue books today.

In the Middle Ages valuable volumes were chained to the desk. Each chain was just long enough to let the
reader open the book, and the shelves were placed near windows since candles were forbidden. The titles stood
on the front edge, not on the spine, because the chain was fastened there.

The decimal system for shelving gives every subject a number. Three digits name the field, and further digits
after the point divide it as finely as needed. A librarian can thus put a treatise on beekeeping next to its
relatives without having read it, and a visitor can discover neighbors by accident.

The reading room falls silent around three in the afternoon. A student has gone to sleep on a volume of
anatomy, the radiator ticks, and someone turns pages with a wet finger. Behind the counter the librarian
repairs a torn map with thin tissue and paste, as carefully as a surgeon.

Today a public library lends far more than books. You may borrow drills, board games, telescopes and cake
pans, print a form, or get help with a job application. In winter it is also a warm room that asks nobody to
buy anything. Few other places in town can say the same.
""",
    "ceramics": """
Clay remembers how it was treated. If a flat piece is bent and straightened before drying, it will try to bend
again in the kiln. Potters therefore knead the lump thoroughly, drive out the air, and handle thin parts as
little as possible. A cup that looks fine on Monday may return crooked on Friday.

Throwing on the wheel begins with centering. The potter leans on the spinning lump until it runs without the
slightest wobble, opens it with the thumbs, and draws up the wall between two fingers. Pulling too fast tears
it, pulling too slowly soaks it. For months beginners produce ashtrays.

A glaze is a thin coat of glass. It is brushed or poured on as a dull gray slurry, and only the fire shows its
color. Iron may turn honey brown or pale green, copper turquoise or blood red, depending on how much air is
allowed into the kiln. Opening the door feels like unwrapping presents.

Porcelain was a secret for centuries. Merchants carried the white, ringing bowls from the East and sold them
for fortunes, while alchemists elsewhere tried to imitate them with ground glass and eggshells. The answer was
a particular white clay, mixed with feldspar and quartz and fired at an extreme heat.

Archaeologists love broken pots. People have always thrown them away, nobody ever bothered to steal the
pieces, and they do not rot. Shapes and patterns changed with fashion, so a handful of shards can date a whole
layer of soil, and crusts inside may even reveal what was for dinner.
""",
    "board games": """
Chess has only six kinds of pieces, yet no two long games are alike. After each player has moved three or four
times there are already many millions of possible positions. Masters do not calculate them all. They recognize
patterns, much as we recognize faces, and examine just a few moves in depth.

The board game go is played with black and white stones on the crossings of a grid. You place one, and it
never moves again unless it is captured. Beginners chase single stones; strong players sketch large areas and
let their opponent have the small ones. A fight in one corner may be decided by a stone in another.

Dice are older than writing about dice. Players in antiquity rolled the ankle bones of sheep, which land on
four different sides with unequal chances. Real cubes came later, and many of those found by diggers are
lopsided. Whether that was clumsiness or cunning, the bones do not say.

A good rulebook for a board game is a small masterpiece. It must explain the goal first, then a turn, then the
exceptions, and it has to answer the quarrels of people whom its author will never meet. Most families ignore
it anyway and play by a version handed down from an uncle.

Card shuffling is harder than it seems. Tossing the deck a few times leaves long runs in their old order, and
a sharp observer can profit from them. Mathematicians have shown that about seven ordinary riffle shuffles are
needed to mix fifty-two cards well. Casinos took note, and bought machines.
""",
    "elections": """
Counting votes sounds easy until three candidates run. Two similar ones may split their supporters, and the
third wins although most people dislike him. Some places hold a second round between the top two; others let
voters rank all the names. Every method has a flaw, as mathematicians have proved, but not the same flaw.

The secret ballot is younger than many suppose. For a long time voters called out their choice before a clerk,
while landlords and employers stood by and listened. Printed papers, curtains and sealed boxes ended this. It
is the reason why nobody can be thanked, or punished, for a vote.

On election day the polling station smells of floor wax and coffee. Volunteers check names on a list, tear off
a ballot, and point toward the booths. At six the doors are locked, the box is emptied on a table, and the
piles are counted twice. Observers from all parties watch every movement.

Opinion polls ask a thousand people in order to learn about millions. If the sample is random, that is enough
to come within about three percentage points. The trouble is that it rarely is: some people never answer the
phone, and those who do may differ from those who do not. Pollsters adjust, and sometimes guess.

A town council spends its evenings on drains, bus stops and the opening hours of the swimming pool. The
debates are seldom reported, yet they touch daily life more than most speeches in parliament. Anyone may sit
in the back row and listen. Usually there are three chairs too many.
""",
    "first aid": """
Cool a burn with running tap water as soon as you can, and keep it there for many minutes. Take off rings
before the skin swells. Do not use ice, butter or toothpaste. Cover the area loosely with something clean, and
see a doctor if the burn is large, deep, or on the face or hands.

If someone collapses and does not breathe normally, call for help and begin to press on the middle of the
chest, hard and fast, about two times per second. Songs with a steady beat can help you keep the pace. Even
clumsy compressions are far better than none, and they should go on until trained helpers arrive.

A nosebleed looks worse than it is. Sit up, lean slightly forward, and pinch the soft part of the nose for ten
minutes without peeking. Tilting the head back only sends the blood into the throat. A cold cloth on the neck
does no harm. When it has stopped, leave your nose alone for the rest of the day.

The kit in the car should be checked once a year. Plasters lose their glue, gloves grow brittle, and scissors
disappear into the kitchen drawer. Add a blanket, a flashlight and a card with phone numbers. You hope to
throw everything away unused, like any other insurance.

Someone who feels faint should lie down with the legs raised, so that blood returns to the head. Open a tight
collar, let in fresh air, and talk calmly. Most people come round within a minute or two. If they do not, or
if they were hurt in the fall, treat it as an emergency.
""",
    "harbors": """
A lighthouse is recognized by its rhythm. One flashes twice and rests for ten seconds, another blinks red and
white, and the chart tells the sailor which is which. The great lenses are built from rings of glass that bend
the light of a single lamp into a beam visible beyond the horizon.

The steel container changed ports more than steam did. Gangs of men once carried sacks and barrels ashore for
a week; now a crane lifts a box every two minutes, and nobody on the quay knows what is inside. Ships grew,
old docks became too small, and warehouses turned into apartments.

Pilots climb aboard big ships by a rope ladder, often at night and in heavy seas. They know every sandbank
between the open water and the berth. The captain remains responsible, but he does what the pilot suggests. An
hour later the small boat collects the pilot again, and the ladder swings above the waves.

Fog signals used to be guns, bells or horns. Keepers had to sound them every few minutes for as long as the
weather lasted, sometimes for days on end. Radar and satellites have made most of them silent. People in the
fishing villages complained when they vanished, for they could no longer sleep.

At five in the morning the fish market is already half over. Crates of cod and mackerel slide across the wet
concrete, and the auctioneer mumbles numbers that only buyers understand. Gulls wait on the roof. By seven the
hall has been hosed down, and the catch is on its way inland.
""",
    "coffee and tea": """
Coffee beans are the seeds of a red fruit that looks like a small cherry. They are washed, dried and shipped
while still green and almost without smell. Only roasting makes them brown and fragrant. As the heat rises
they begin to crack like popcorn, and a few seconds decide between sour, sweet and burnt.

All true tea comes from one kind of shrub. Leaves that are heated soon after picking stay green; leaves that
are rolled and left in the air turn dark, because their juices react with oxygen. Between the two lie many
half-finished sorts, and people argue about them as others argue about wine.

Water that is too hot makes green tea bitter. Let the kettle stand for some minutes after boiling, pour, and
take the leaves out when the cup smells of fresh hay. Good leaves can be used again; the second cup is
gentler, and many drinkers prefer it to the first.

The coffee house was a social invention. For the price of a cup, a merchant could read newspapers, hear which
ships had arrived, and close a bargain at the next table. Insurance companies and stock exchanges grew out of
such rooms. Rulers distrusted them, since sober people talk politics.

Grind size matters more than the machine. Powder that is too fine clogs the filter and gives up harsh
substances, while coarse grains let the water rush past and leave a thin drink. If your coffee tastes wrong,
change the grinder by one step before you buy anything new.
""",
    "maps": """
Every flat map lies. The skin of a ball cannot be spread on a table without stretching or tearing it, so the
mapmaker has to choose what to spoil: shapes, areas, distances or directions. The familiar world map in many
classrooms keeps angles true and pays for it by blowing up everything near the poles.

Contour lines join points of equal height. Where they crowd together the slope is steep, where they spread out
a picnic is possible. With a little practice a hiker can see the landscape rise from the paper, notice that
the shortcut crosses a gorge, and decide to stay on the path after all.

Old charts are full of monsters, partly for decoration and partly because an empty space sells badly. Some
mapmakers drew mountains that nobody had ever visited, and later travelers wasted years in search of them.
Copying was common; a mistake on a respected sheet could survive for two hundred years.

Satellite navigation works by timing. Each satellite broadcasts the exact moment at which its signal leaves.
The receiver in your pocket compares several of these signals, and from the delays it works out how far away
each sender is. An error of a millionth of a second would put you three hundred meters off the road.

The underground map in many cities ignores geography on purpose. Lines run straight or at neat angles, and
stations are evenly spaced, because passengers want to know where to change and not where the tunnel bends.
Tourists who use it for walking are astonished that two distant stops lie round the corner from each other.
""",
}
