"""The words and phrases of the stories, as plain lists: even indices for training an adapter, odd ones for testing it.

``{n} {m} {k}`` are names, ``{o} {p}`` objects, ``{u} {us}`` a container and its plural, ``{a} {b} {c}`` the numbers of
a story and ``{r}`` its result.
"""

from __future__ import annotations

NAMES = (
    "tom sara ben mia dan lily sam anna max emma leo ruth jack nina paul rosa adam clara omar jane "
    "luke dora eric alma hugo vera ivan lucy karl maya"
).split()
OBJECTS = (
    "apples pears books pens cards shells stones coins cakes cookies balls kites plums eggs stamps rings "
    "cups hats roses nuts keys maps toys bells dolls drums lemons figs beads ropes"
).split()
UNITS = [(word, word + "s") for word in "bag basket crate jar tray drawer bucket pack".split()]

START = [
    "{n} has {a} {o} .",
    "at first {n} has {a} {o} .",
    "there are {a} {o} on the table of {n} .",
    "{n} owns {a} {o} .",
    "in the morning {n} has {a} {o} .",
    "{n} starts the day with {a} {o} .",
]
GAIN = [
    "{n} finds {b} more {o} .",
    "then {n} picks up {b} {o} .",
    "{n} buys {b} more .",
    "{n} gets {b} more from {m} .",
    "{m} gives {n} {b} {o} .",
    "{m} brings {n} {b} more {o} .",
]
LOSE = [
    "{n} gives {b} {o} to {m} .",
    "then {n} sells {b} of the {o} .",
    "{n} loses {b} of them .",
    "{n} drops {b} of them in the river .",
    "{m} takes {b} {o} from {n} .",
    "{m} borrows {b} {o} from {n} .",
]
BOTH = [
    "{n} has {a} {o} and {m} has {b} {o} .",
    "{n} owns {a} {o} and {m} owns {b} .",
    "{n} has {a} {o} . {m} has {b} {o} .",
    "there are {a} {o} in the room of {n} and {b} {o} in the room of {m} .",
]
TIMES = [
    "{n} has {a} {us} with {b} {o} in each {u} .",
    "there are {a} {us} and each {u} holds {b} {o} .",
    "{n} fills {a} {us} and puts {b} {o} into each of them .",
    "{n} buys {a} {us} of {b} {o} each .",
]
SHARE = [
    "{n} puts {a} {o} into {b} {us} with the same number in each {u} .",
    "{n} shares {a} {o} equally among {b} {us} .",
    "{a} {o} are packed into {b} equal {us} .",
    "{b} equal {us} hold {a} {o} together .",
]
ASIDE = [
    "{n} also has {c} {p} .",
    "there are {c} {p} in the shop too .",
    "{m} is {c} years old .",
    "the walk home takes {c} minutes .",
    "{m} has {c} {p} at home .",
    "the street has {c} houses .",
]
# (as a question, as a clause, as an outcome)
NOW = [
    ("how many {o} does {n} have now ?", "how many {o} {n} has now", "now {n} has {r} {o} ."),
    ("how many {o} does {n} have in the end ?", "how many {o} {n} has in the end", "in the end {n} has {r} {o} ."),
    ("what number of {o} does {n} own now ?", "what number of {o} {n} owns now", "{n} owns {r} {o} now ."),
    ("how many {o} does {n} have after that ?", "how many {o} {n} has after that", "after that {n} has {r} {o} ."),
]
ALL = [
    ("how many {o} do they have in all ?", "how many {o} they have in all", "in all they have {r} {o} ."),
    ("how many {o} do they have together ?", "how many {o} they have together", "together they have {r} {o} ."),
]
MORE = [
    (
        "how many more {o} does {n} have than {m} ?",
        "how many more {o} {n} has than {m}",
        "{n} has {r} more {o} than {m} .",
    ),
    (
        "how many fewer {o} does {m} have than {n} ?",
        "how many fewer {o} {m} has than {n}",
        "{m} has {r} fewer {o} than {n} .",
    ),
]
PRODUCT = [
    ("how many {o} are there in all ?", "how many {o} there are in all", "there are {r} {o} in all ."),
    ("how many {o} are in the {us} ?", "how many {o} are in the {us}", "there are {r} {o} in the {us} ."),
]
QUOTIENT = [
    ("how many {o} are in each {u} ?", "how many {o} are in each {u}", "there are {r} {o} in each {u} ."),
    ("how many {o} does one {u} hold ?", "how many {o} one {u} holds", "one {u} holds {r} {o} ."),
]
# (a claim, whether it says that the first person's number is larger)
CLAIMS = [
    ("{n} has more {o} than {m}", True),
    ("the {o} of {n} are more than the {o} of {m}", True),
    ("{n} has fewer {o} than {m}", False),
    ("the {o} of {n} are fewer than the {o} of {m}", False),
]
DOUBTS = [
    ("{k} says that {claim} . is that true or false ?", "{k} says that {claim} ."),
    ("{k} thinks that {claim} . is this true or false ?", "{k} thinks that {claim} ."),
    ("is it true or false that {claim} ?", "is it so that {claim} ."),
    ("can we say that {claim} , true or false ?", "we can say that {claim} ."),
]
