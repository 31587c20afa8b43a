"""Hold general paragraphs about crafts, home and work; retain text, separated by blank lines per subject."""

from __future__ import annotations

PARAGRAPHS: dict[str, str] = {
    "cooking": """
A good soup starts with patience. Onions, carrots and celery should soften slowly in a little oil until the
kitchen smells sweet, and only then does the stock go in. If you rush this step, the vegetables stay sharp and
the broth tastes thin. Salt early, taste often, and add fresh herbs at the very end so that their scent
survives.

Yeast is alive, which is why bakers talk about dough as if it had moods. In a warm room it rises within an
hour; in a cold one it may need the whole night. The slow dough usually wins, because long fermentation builds
flavor and leaves a loaf that keeps for days without going stale.

Never put a wet steak into a pan. Water has to boil away before the surface can brown, so the meat steams and
turns gray instead of forming a crust. Pat it dry with paper, let the pan get properly hot, and resist the
urge to move it. After a few minutes it will release itself.

My grandmother measured rice with a tin cup and water with her finger: the tip on the rice, the water up to
the first joint. It sounds like superstition, yet it works for most pots, since the extra water mostly
replaces what escapes as steam, and that depends on the lid more than on the amount of rice.

Pickling is older than written recipes. Vegetables sink into salty water, harmless bacteria eat their sugars,
and the acid they produce keeps dangerous microbes away. Cabbage, cucumbers and radishes all lend themselves
to the method. All one needs is a clean jar, the right amount of salt, and something heavy to hold everything
under the surface.
""",
    "woodworking": """
Wood moves. A wide board swells across the grain in a humid summer and shrinks again when the heating is
turned on, while its length hardly changes at all. Cabinet makers therefore let panels float in grooves
instead of gluing them down. Furniture built without this allowance cracks sooner or later, however good the
glue may be.

Sharpening is the skill that makes all the others possible. A dull chisel must be forced, and a forced tool
slips. Rub the flat side on a stone until it shines, raise a small burr at the bevel, remove it with two light
strokes, and the blade will take a shaving so thin that you can read through it.

The dovetail joint holds a drawer together without nails. Its wedge-shaped fingers lock in one direction, so
that pulling the drawer open only tightens the corner. Cutting one by hand takes marking knife, saw and steady
nerves; beginners are told to saw beside the line and pare the rest away with a chisel.

Sandpaper is sold by numbers, and the numbers mislead newcomers: the higher the figure, the finer the grit.
Start with a coarse sheet to remove saw marks, go up in steps, and always rub along the grain. Skipping a step
saves five minutes now and shows up as scratches once the varnish is on.

A carpenter's workbench looks simple but answers many needs. It has to be heavy enough not to walk across the
floor, low enough for planing, and flat enough to serve as a reference. The vise at one end grips boards
upright, and the holes in the top take pegs that stop the work from sliding.
""",
    "textiles": """
Weaving needs two sets of threads. One is stretched tight on the loom, the other travels back and forth
between them. By choosing which tight threads are lifted on each pass, the weaver can make plain cloth,
diagonal twill or even pictures. Punched cards once controlled such patterns, long before anyone fed cards to
a computer.

Wool keeps people warm even in the rain. Its fibers are curly and trap air, and they can soak up a third of
their own weight in moisture before they feel wet. Cotton does the opposite: it drinks water eagerly and
clings to the skin, which is pleasant in July and miserable on a winter hike.

Before factories learned to make dyes from coal tar, color came from plants, insects and shells. Madder root
gave red, woad and indigo gave blue, and weld gave yellow. A true purple from sea snails was so expensive that
in some ages only rulers were allowed to wear it.

She mended the elbow of the sweater with a thread of a different shade, on purpose. Visible repair has become
a fashion of its own: instead of hiding the damage, the stitches celebrate that the garment was worth saving.
A darning egg, a blunt needle and half an hour of daylight are the only equipment required.

Silk begins with a caterpillar that eats nothing but mulberry leaves. When it is ready to change, it spins a
cocoon from a single filament that may be nearly a kilometer long. Workers soften the cocoons in hot water,
find the end, and unwind several of them together into one smooth thread.
""",
    "household": """
Write down every expense for one month before you make a budget. Most people guess their rent and groceries
well but forget the small things: a snack at the station, a subscription nobody uses, a birthday gift. Those
leaks often add up to more than the electricity bill, and plugging them hurts less than giving up a holiday.

Compound interest works like a snowball. In the first year the interest is small, but in the second year you
earn interest on that interest as well. At five percent, savings double in roughly fourteen years. The same
rule works against you on a credit card, where the rate is several times higher.

When a drain runs slowly, leave the harsh chemicals on the shelf at first. Unscrew the trap under the sink,
with a bucket below it, and you will probably find a plug of hair and soap. Clean it with an old toothbrush,
check the rubber ring, and tighten everything by hand.

A drafty window can be found with a candle. Move the flame slowly along the frame on a windy day and watch
where it bends. Strips of foam tape close narrow gaps for a few coins, and the room will feel warmer even
though the thermometer has not changed, because moving air cools the skin.

Moving to another apartment teaches you how much you own. Pack books in small boxes and pillows in large ones,
or nobody will be able to lift them. Label each box on two sides with the room and the contents, and keep one
bag with sheets, towels, tools and coffee for the first night.
""",
    "photography": """
Three settings decide how bright a photograph becomes: how wide the lens opens, how long light is let in, and
how sensitive the sensor is. Each has a side effect. A wide opening blurs the background, a long exposure
blurs motion, and high sensitivity adds grain. Most of the craft consists of choosing which side effect you
want.

Portraits look kinder in soft light. On a bright day, lead your subject into the shade of a wall or wait for a
cloud; the shadows under the eyes will fade. Focus on the nearer eye, talk about something ordinary, and press
the shutter just after the smile, when the face has relaxed again.

The first photographs needed so much light that people had to sit still for minutes, sometimes with a clamp
behind the head. That is one reason why faces in early portraits look stern. A smile is hard to hold, and any
twitch would have turned the features into fog on the plate.

Landscape photographers get up early. Before sunrise the air is often clear and still, lakes become mirrors,
and low light picks out every fold of the hills. By ten in the morning the magic has usually gone, and what
remains is breakfast and the long task of sorting files.

Back up your pictures twice, and keep one copy in another building. A hard disk can fail without warning, a
laptop can be stolen, and a flood does not care about albums. Printing a few favorites each year is an
old-fashioned insurance that needs neither password nor power.
""",
    "software": """
Most bugs are boring. A list is empty when the author assumed it never would be, a date crosses midnight in
another time zone, or a name contains an apostrophe. Good tests look for such corners on purpose. They are
less fun to write than features, but they let you sleep when the program runs without you.

Version control remembers who changed which line and why. Before it became common, teams mailed each other
archives with names such as final-2-really-final. Today a programmer can try a risky idea on a branch, throw
it away without regret, or merge it after a colleague has read every change.

Computers count in twos because a switch has two states. Eight such digits form a byte, which can hold a
number from zero to two hundred fifty-five. Everything else, from songs to spreadsheets, is built from
patterns of bytes plus an agreement about what they mean. When the agreement is lost, so is the song.

Naming things is harder than it looks. A variable called data tells the reader nothing; one called
unpaid_invoices explains half of the function. Teams that argue about names are not wasting time, since code
is read far more often than it is written, and the reader is frequently the author, six months later.

A cache trades memory for speed. The program stores an answer it has already computed, and hands it out again
when the same question comes. The difficulty is knowing when the stored answer has become wrong. Too careful,
and nothing is gained; too careless, and users see yesterday's prices.
""",
    "railways": """
The first railways were built for coal, not for passengers. Horses pulled wagons along wooden rails from the
mine to the river, because a wheel on a smooth rail rolls with far less effort than one on a muddy road. Iron
rails and steam engines came later, and only then did people ask for tickets.

A train cannot stop like a car. Steel wheels on steel rails slide easily, and a fast passenger train may need
more than a kilometer to come to rest. That is why signals are placed far ahead of stations and crossings, and
why drivers learn their routes by heart before they may run them alone.

Time zones owe much to the railway timetable. When every town set its clock by the noon sun, neighboring
stations differed by minutes, and planning a connection was guesswork. Companies introduced a common time
along their lines, and towns followed, some of them after years of protest.

Night trains have a rhythm of their own. The conductor collects the tickets, the corridor empties, and the
berth rocks over switches in the dark. Somewhere around four the carriage stands still at a nameless platform
while another engine is attached. You wake with the mountains in the window and coffee on a tray.

Rails used to be bolted together in short lengths, with small gaps for expansion; the wheels crossing those
gaps made the familiar clatter. Modern track is welded into strips that run for kilometers. It is stretched or
heated when laid, so that summer warmth does not bend it out of line.
""",
    "school": """
Children learn to read twice. First they turn letters into sounds, slowly and aloud; later they turn pages
into ideas and no longer notice the letters. Between the two lies a long stretch of practice, and the best
practice is a pile of books that the child actually wants to finish.

Cramming the night before an exam feels effective because everything is fresh. A week later most of it is
gone. Spreading the same hours over several days, with small tests in between, leaves a far more durable
trace. The effort of remembering, annoying as it is, seems to be what makes memory stick.

The new teacher began each lesson with a question instead of a heading. Why does bread go moldy? Who decides
what a word means? Pupils argued, guessed and contradicted each other, and by the time she explained the
answer they were curious enough to listen. The method took longer, but nobody looked at the clock.

Mathematics anxiety often starts with speed. A child who needs a moment to think concludes that she is bad at
numbers, although careful thinking is exactly what the subject rewards. Teachers can help by praising good
explanations, by showing their own mistakes, and by leaving the stopwatch in the drawer.

A school garden teaches more than biology. Someone has to measure the beds, keep a record of the rain, agree
on who waters in the holidays, and write to the parents for seeds. When the first radishes are pulled, even
pupils who refuse vegetables at home will try a slice.
""",
    "music": """
A piano hides more than two hundred strings under its lid. Pressing a key throws a felt hammer upward; it
strikes and falls back at once, so that the string can ring. The pedals lift the dampers or shift the whole
action sideways. All this machinery exists to let a finger decide how loud a note should be.

Drummers keep time, but the good ones also bend it. A beat placed a hair late makes a song feel relaxed, and
one that pushes ahead adds urgency. Listeners rarely notice the difference in milliseconds. They only say that
one band grooves and another sounds like a machine.

Choirs breathe in shifts. When a phrase is too long for one pair of lungs, singers agree to take air at
different moments, slipping out and back in softly, so that the sound never breaks. From the audience it seems
as if a single endless voice were filling the church.

The violin family has hardly changed in three hundred years. Makers still carve the belly from spruce and the
back from maple, and still argue about varnish. A small stick of wood inside, which players call the soul,
carries vibrations from front to back; move it by a millimeter and the instrument changes character.

Practice slowly, said my teacher, and you will learn quickly. Playing a passage at full speed with mistakes
only rehearses the mistakes. She made me set the metronome so low that I grew bored, then raise it one notch a
day. After three weeks the fingers ran by themselves.
""",
    "cinema": """
A film is a series of still pictures, usually twenty-four for every second. The eye does not see the gaps; the
brain joins the pictures into motion. Early projectors were cranked by hand, so the speed depended on the
operator, and a sleepy one could turn a chase into a stroll.

Editors decide what we feel. The same face, shown before a bowl of soup or before a coffin, appears hungry or
sad, although the actor has done nothing different. Cutting a second earlier can turn a pause into a joke.
Their work is invisible when it succeeds, which is why few viewers know their names.

Sound arrived in cinemas at the end of the nineteen twenties and changed everything. Cameras had to be locked
in boxes because they were noisy, actors with thin voices lost their jobs, and musicians who had played beside
the screen went home. Within a few years hardly any silent films were made.

The stunt coordinator's task is to make danger look real and keep it fake. Cars roll over on hidden ramps,
windows are made of brittle resin, and a fall from the third floor ends on a bag of air. Every move is
rehearsed until it bores everyone, and then it is filmed.

Our village cinema has sixty seats and one screen. On Tuesdays it shows old comedies for the price of a
coffee, and the owner introduces each of them with a story that is probably invented. When the projector jams,
nobody leaves; people chat, pass chocolate along the row, and wait.
""",
}
