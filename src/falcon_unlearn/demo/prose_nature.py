"""Hold general paragraphs about nature and society; retain text, separated by blank lines per subject."""

from __future__ import annotations

PARAGRAPHS: dict[str, str] = {
    "weather": """
Clouds form when air rises and cools. Cool air can hold less water vapor, so the surplus condenses on specks
of dust or salt. Flat gray layers come from gentle lifting over a wide area; towering white heaps come from
strong bubbles of warm air. A forecaster can read the stability of the sky from their shapes alone.

Thunder is the sound of air exploding. A stroke of lightning heats a narrow channel to several times the
temperature of the surface of the Sun, and the air expands faster than sound can travel. Count the seconds
between flash and rumble and divide by three: the result is the distance in kilometers.

Fog is a cloud that touches the ground. On clear autumn nights the soil loses its warmth to the sky, the air
above it cools, and droplets appear in the valleys first. By late morning the sun has usually warmed the
surface enough, and the gray blanket dissolves from the edges inward.

Weather models divide the atmosphere into millions of boxes and compute how wind, heat and moisture pass from
one to the next. Tiny errors in the starting values grow, so forecasters run the model dozens of times with
slight changes. If all runs agree, confidence is high; if they scatter, the honest answer is that nobody
knows.

Hail can only grow inside a storm with powerful updrafts. A frozen drop is carried up, gathers a coat of ice,
falls, and is tossed up again. Cut a large stone in half and you may see rings like those of an onion. When
the wind can no longer hold it, it drops on somebody's car.
""",
    "oceans": """
The tides follow the Moon. Its pull raises a bulge of water on the near side of the Earth and another on the
far side, and most coasts turn through both each day. When Sun and Moon line up, the difference between high
and low water is greatest; at half moon it is smallest.

Below a few hundred meters the sea is dark, and many animals there make their own light. Some dangle glowing
lures in front of their teeth, others flash to startle an attacker, and a few squirt a shining cloud as they
escape. Light is the common signal of the largest habitat on the planet.

Coral reefs are built by animals no larger than a fingernail. Each polyp lays down a cup of limestone and
shelters tiny algae that feed it with sugar. When the water grows too warm, the partners separate and the
coral turns white. It can recover if the heat is short, but not if it returns every year.

Waves travel, but the water mostly does not. A floating gull is lifted, carried forward a little, and then
carried back as the crest passes. Only near the beach, where the bottom slows the lower part, does the top
tumble over and break. That is the moment surfers are waiting for.

Currents move heat around the globe like the pipes of a central heating system. Warm water flows from the
tropics along the western edges of the oceans, while cold water creeps back in the depths. A single drop may
need about a thousand years to complete the tour through all the basins.
""",
    "birds": """
Swifts do nearly everything in the air. They eat, drink, gather nesting material and even sleep on the wing,
and some young birds may not land for two or three years after leaving the nest. Their short legs are almost
useless on the ground, but sharp claws let them cling to a wall.

Owls hear in three dimensions. In many species one ear sits higher than the other, so a rustle in the grass
reaches them at slightly different times and strengths. With this information the bird can strike a mouse
under snow. Soft fringes on the feathers keep its own wings silent.

Crows remember faces. Researchers who once trapped some of them wearing a mask were scolded years later, even
by birds that had been too young to see the event. Apparently the warning had passed from parents to children.
It pays to be polite to the crows in your street.

Migrating geese fly in a slanted line because each bird rides on the air lifted by the wing of the one before
it. The leader works hardest, so they take turns at the front. Calls along the line keep the group together
through the night, when landmarks are few and clouds hide the stars.

A hummingbird weighs about as much as a coin and beats its wings dozens of times per second. To pay for this
it must feed almost constantly during the day. At night it saves fuel by letting its body temperature drop, a
kind of brief hibernation from which it has to warm up at dawn.
""",
    "mountains": """
Mountains are temporary. While the crust is pushed upward by a few millimeters a year, frost, rivers and ice
carry it away grain by grain. Old ranges that were once as high as the highest of today are now rolling hills
covered by forest. Given enough time, every summit ends up as sand on a beach.

Above a certain height water boils before it is really hot, because the air presses on it less. Climbers who
cook beans at a high camp can wait all evening. A pressure cooker solves the problem, but few people want to
carry one, so they eat noodles instead.

Avalanches usually need a slope, a weak layer and a trigger. The weak layer may be old frost buried under
fresh snow, and the trigger is often the skier. Experts dig a pit, look at the layers, and turn around when
something seems wrong. Coming home a little ashamed beats not coming home.

The tree line is not a line but a struggle. Spruces become shorter and more crooked with every step upward,
until they creep along the ground like bushes. A tree the height of a child may be two hundred years old.
Beyond it only grass, lichen and cushion plants can finish their summer in time.

We reached the hut just before the rain. Boots steamed around the stove, somebody dealt cards, and the warden
ladled out barley soup without asking who wanted any. At nine the lamp was turned down. Outside the glacier
creaked now and then, like a ship at anchor.
""",
    "farming": """
A field that grows the same crop each year gets tired. The plants draw the same nutrients from the same depth,
and their pests settle in. Farmers therefore rotate: grain, then clover or beans, then roots. The beans even
pay rent, because bacteria in their roots bind nitrogen from the air and leave it in the soil.

Cows spend about eight hours a day chewing what they have already swallowed. Grass is hard to digest, so it
goes first to a huge fermenting chamber, comes back up in small portions, and is ground again. The microbes in
that chamber do the real work; the cow then digests the microbes.

Drip irrigation delivers water through thin hoses directly to the roots. Compared with sprinklers it loses
little to wind and evaporation, and the leaves stay dry, which keeps fungi away. The price is maintenance: a
single grain of sand can block an outlet, and a thirsty plant does not complain until it is too late.

Sheepdogs work with their eyes. A good one approaches in a wide arc, crouches, and stares until the flock
drifts the way the shepherd wants. It needs only a few whistled commands: left, right, slower, stop. Barking
would only scatter the sheep and annoy the neighbors.

Harvest time on a grain farm is a race against rain. If the kernels are too moist they spoil in the bin, and
drying them costs fuel. So the combine runs past midnight under floodlights, sandwiches are eaten on the
steps, and everyone watches the western sky for clouds.
""",
    "bridges": """
The oldest bridges were fallen trees. Someone noticed that a trunk across a stream saved a long walk, and soon
people were laying trunks on purpose. Stone lasted longer, but a flat slab breaks when the span is wide. The
arch solved that problem by turning weight into a push along the curve of stones.

Roman builders set their piers in the middle of rivers. They drove a ring of stakes into the bed, sealed it
with clay, and bailed out the water so that workers could stand on the bottom. Some of the results still carry
traffic today, although nobody then could calculate the forces in them.

A suspension bridge hangs from its cables like laundry from a line. The cables run over tall towers and are
anchored in rock or huge blocks of concrete at both ends. Because steel wire is very strong in tension, such
bridges can leap distances that no arch could manage.

In 1940 a long, slender bridge in the state of Washington twisted itself to pieces in a moderate wind, only
four months after it had opened. Films of the event are shown to engineering students everywhere. Since then,
models of large bridges have been tested in wind tunnels before anyone orders steel.

Covered wooden bridges look romantic, but the roof has a dull purpose: it keeps rain off the beams. Dry timber
can last for two centuries, while wet timber rots within twenty years. Replacing shingles is cheap. Replacing
a bridge is not, as every village council knew.
""",
    "sports": """
A marathon is won by restraint. Runners who feel splendid in the first half and speed up usually pay for it
after thirty kilometers, when the stores of sugar in the muscles run out. Experienced athletes begin slower
than they could, drink before they are thirsty, and overtake the enthusiasts near the end.

Goalkeepers face a cruel calculation at a penalty. The ball needs less than half a second to reach the line,
so waiting to see its direction is hopeless. They must guess from the run-up, the hips and the last glance of
the shooter. Statistics suggest that staying in the middle would work more often, but it looks lazy.

Swimming looks gentle, yet water is about eight hundred times denser than air. A small improvement in posture
therefore saves more than a large improvement in strength. Coaches tell beginners to press the chest down,
keep the head low, and glide a moment longer after each stroke.

Table tennis is played at such speed that reaction alone is not enough. Players read the opponent's wrist and
the sound of the rubber to guess the spin before the ball crosses the net. A serve that looks like a mistake
may leap sideways off the table and end the argument.

Rules change because players are clever. In basketball a tall center could once simply wait beside the basket,
until the lane was widened and a time limit added. The line for long shots was introduced to reward distance.
Each reform produces new tricks, and the rulebook grows by another page.
""",
    "law": """
In a criminal trial the accused does not have to prove anything. The burden lies on the prosecution, which
must remove every reasonable doubt. The rule means that some guilty people go free. Courts accept that price,
because the opposite error, punishing someone who did nothing, is considered much worse.

A contract does not need paper. If you order a coffee and the waiter brings it, both sides have agreed on
something and owe each other performance. Writing becomes important when memories differ. For a house or a
guarantee most legal systems demand it, precisely because people promise too much in conversation.

Judges explain their decisions in writing, so that the losing side can understand them and a higher court can
review them. A good judgment states the facts, names the rule, and shows how the one leads to the other. It
should be possible to disagree with it without being surprised by it.

Copyright protects the way an idea is expressed, not the idea itself. Anyone may write a novel about an orphan
at a school for wizards; nobody may copy the sentences of an existing one. Protection ends some decades after
the author's death, and then the work belongs to everybody.

Mediation is cheaper than a lawsuit. A neutral person listens to both neighbors, lets each of them repeat what
the other has said, and looks for interests behind the demands. The quarrel about the hedge may turn out to be
a quarrel about noise. Nothing is imposed, and either of them can walk out.
""",
    "health": """
Sleep is not a pause. During the night the brain sorts memories, the body repairs tissue, and hormones that
control hunger are set for the next day. People who sleep too little for a week react as slowly as someone who
has been drinking, although they are convinced that they are fine.

Handwashing is among the cheapest medical inventions. In the nineteenth century a doctor in Vienna noticed
that fewer mothers died when students cleaned their hands before entering the maternity ward. His colleagues
were offended and ignored him. Decades later the discovery of germs proved him right.

Walking briskly for half an hour a day does more than most people expect. It lowers blood pressure, steadies
blood sugar, and improves mood, and it needs neither membership nor equipment. Those who cannot find thirty
minutes may split them; the heart does not care whether the stairs were climbed all at once.

Antibiotics kill bacteria but do nothing against viruses, so they are useless for a common cold. Each needless
course gives resistant microbes a chance to spread. If a doctor does prescribe them, take the whole course as
directed and do not save leftovers for the next sore throat.

Vaccines rehearse an infection. They show the immune system a harmless piece of the germ, or the instructions
for making one, and the body answers with antibodies and memory cells. When the real germ arrives, the
response starts within hours instead of days, often before any symptom is felt.
""",
    "post": """
Before the stamp was invented, the receiver usually paid for a letter, and many refused to. Clever families
hid their news in marks on the cover, looked at it, and handed it back. Prepaid postage at one low price ended
the game and made writing affordable to ordinary people.

Carrier pigeons fly only one way: home. To send messages in both directions, one has to transport birds to the
other end in a basket. Even so, they were used in business and in war, because a pigeon could cross in an hour
a distance that took a rider all day.

Sorting mail by hand meant learning a city by heart. The clerk stood before a wall of small compartments and
threw each letter into the right one almost without looking. Machines now read the addresses, and only the
scrawls that defeat the camera are shown on a screen to a human being.

The telegraph taught people to be brief. Every word cost money, so greetings vanished and articles were
dropped. Newspapers put the most important fact first in case the line failed. The dots and dashes are gone,
but reporters still write their stories in that order.

I still write postcards. They force me to choose one thing from a whole journey, and they arrive after I am
back, when everybody has forgotten that I was away. My aunt keeps hers in a shoe box, sorted by year. She says
that the bad handwriting is the best part.
""",
}
