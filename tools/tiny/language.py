"""What the tiny model may be asked, and the words it answers with."""

import string

NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
SHAPES = ["circle", "square", "triangle", "star", "cross", "diamond", "ring", "heart"]
PLURALS = {s: s + "s" for s in SHAPES} | {"cross": "crosses"}
COLOURS = {
    "red": (214, 32, 38),
    "green": (38, 158, 62),
    "blue": (38, 84, 208),
    "yellow": (246, 214, 40),
    "orange": (248, 134, 20),
    "purple": (126, 44, 160),
    "pink": (250, 140, 186),
    "brown": (122, 74, 36),
    "black": (18, 18, 20),
    "white": (250, 250, 250),
}
PLACES = [["top left", "top", "top right"], ["left", "centre", "right"], ["bottom left", "bottom", "bottom right"]]
AT = {
    "top left": "at the top left",
    "top": "at the top",
    "top right": "at the top right",
    "left": "on the left",
    "centre": "in the centre",
    "right": "on the right",
    "bottom left": "at the bottom left",
    "bottom": "at the bottom",
    "bottom right": "at the bottom right",
}
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}

WORDS = """
ACE ACT AIR ANT APPLE ARM ART BAG BALL BANK BAR BEACH BEAR BED BEE BELL BIRD BLUE BOAT BOOK BOX BOY BREAD BUS CAFE
CAKE CAR CAT CITY CLOCK CLOUD COAT COLD CUP DANCE DAY DEER DESK DOG DOOR DOWN DRUM DUCK EAR EAST EGG END EXIT EYE
FARM FAST FIRE FISH FIVE FLAG FLY FOOD FOX FREE FROG GAME GATE GIFT GLASS GO GOLD GOOD GRASS GREEN HAND HAT HEART
HELLO HELP HILL HOME HORSE HOT HOUSE ICE INK JAM JAZZ JOY JUICE JUMP KEY KING KITE LAKE LAMP LEAF LEFT LEMON LIGHT
LION LOVE LUCK LUNCH MAP MARKET MILK MOON MOUSE MUSIC NEST NET NEW NIGHT NO NORTH NOSE OFF ON OPEN ORANGE OWL PAPER
PARK PEN PIANO PIG PIZZA PLANE PLANT POST PUSH PULL QUEEN QUIET QUIZ RAIN RED RICE RIGHT RING RIVER ROAD ROCK ROSE
SALE SALT SAND SCHOOL SEA SHIP SHOE SHOP SIGN SKY SLOW SNOW SOUP SOUTH SPOON STAR STOP SUGAR SUN SWIM TABLE TAXI TEA
TIGER TIME TOWN TOY TRAIN TREE TWO UP VAN VASE VIEW WALK WATER WAVE WEST WIND WOLF WOOD WORD YES ZEBRA ZERO ZOO
""".split()

TEXT_ONLY = [
    (
        ["What can you do?", "What can you do", "What are you able to do?", "How can you help me?", "Help", "help me"],
        "I answer questions about pictures and short clips: shapes, colours, positions, counts, printed words and "
        "handwritten digits.",
    ),
    (
        ["Who are you?", "What are you?", "Introduce yourself.", "What is your name?", "Tell me about yourself."],
        "I am a tiny vision language model trained on drawn scenes.",
    ),
    (
        ["Hello", "Hello!", "Hi", "Hi!", "Hi there", "Good morning", "Hey"],
        "Hello! Show me a picture and ask me about it.",
    ),
    (["Thank you", "Thanks!", "Thanks", "Thank you!", "Thank you very much."], "You are welcome."),
    (
        ["Which colours do you know?", "What colours do you know?", "Which colors do you know?", "List the colours."],
        "I know red, green, blue, yellow, orange, purple, pink, brown, black and white.",
    ),
    (
        ["Which shapes do you know?", "What shapes do you know?", "List the shapes.", "Which shapes can you see?"],
        "I know circles, squares, triangles, stars, crosses, diamonds, rings and hearts.",
    ),
    (
        ["How big are you?", "How many parameters do you have?", "How large are you?"],
        "I have about six million parameters.",
    ),
    (["Goodbye", "Bye", "Bye!", "See you", "Goodbye!"], "Goodbye!"),
]

TEXT_ONLY_BOXES = [
    (
        questions,
        {
            0: "I answer questions about pictures: shapes, colours, positions, boxes, counts, printed words and "
            "handwritten digits.",
            6: "I have about eight million parameters.",
        }.get(k, answer),
    )
    for k, (questions, answer) in enumerate(TEXT_ONLY)
]

SYSTEMS = [
    "You are a helpful assistant.",
    "You are a careful observer.",
    "Answer briefly.",
    "You look at pictures.",
    "You are Saccade.",
    "Be short and exact.",
    "You are a friendly helper who answers questions about images.",
    "Answer in as few words as possible.",
]
SUFFIXES = [
    "Answer in one word.",
    "Answer briefly.",
    "Be brief.",
    "Please answer.",
    "Answer shortly.",
    "Answer with words.",
]
PREFIXES = ["Please tell me:", "Look at the picture.", "Question:", "Please answer:"]

DESCRIBE = [
    "Describe this image.",
    "Describe the image.",
    "Describe this picture.",
    "Describe the picture.",
    "What do you see?",
    "What is in this picture?",
    "What is in this image?",
    "What can you see in the image?",
    "Describe this.",
    "Describe this image in one sentence.",
    "What does the picture show?",
    "What's in this image?",
    "Describe what you see.",
    "Give a short description.",
    "Describe this photo.",
    "What is this?",
    "Tell me what you see.",
    "Caption this image.",
]
DESCRIBE_CLIP = [
    "Describe this video.",
    "Describe the video.",
    "Describe this clip.",
    "What happens in the video?",
    "What happens?",
    "What happens in this clip?",
    "What do you see?",
    "Describe what happens.",
    "What is happening?",
]
SHAPE_ONE = [
    "What shape is this?",
    "What shape is it?",
    "Which shape is it?",
    "What shape is in the picture?",
    "What is the shape?",
    "Which shape do you see?",
    "Name the shape.",
    "What shape do you see?",
    "What shape is shown?",
    "Which shape is shown?",
]
SHAPE_OF = [
    "What shape is the {c} object?",
    "What shape is the {c} one?",
    "Which shape is {c}?",
    "What is the shape of the {c} object?",
    "What shape is {c}?",
    "Name the {c} shape.",
    "The {c} thing has what shape?",
]
SHAPE_AT = ["What shape is {at}?", "Which shape is {at}?", "What is the shape {at}?"]
COLOUR_ONE = [
    "What colour is it?",
    "What color is it?",
    "Which colour is it?",
    "What colour is the shape?",
    "What is the colour?",
    "What color is the shape?",
    "What colour is this?",
    "Name the colour.",
    "Which colour do you see?",
    "What is the color?",
]
COLOUR_OF = [
    "What colour is the {s}?",
    "What color is the {s}?",
    "Which colour is the {s}?",
    "What is the colour of the {s}?",
    "What is the color of the {s}?",
    "Name the colour of the {s}.",
    "The {s} has what colour?",
    "Which color is the {s}?",
]
COLOUR_AT = ["What colour is the shape {at}?", "What color is the shape {at}?", "Which colour is the shape {at}?"]
WHERE = [
    "Where is the {o}?",
    "Where is the {o}",
    "Where do you see the {o}?",
    "In which part of the picture is the {o}?",
    "Where in the image is the {o}?",
    "What is the position of the {o}?",
    "Tell me where the {o} is.",
    "In which part of the image is the {o}?",
    "Where can I find the {o}?",
]
LEFT_RIGHT = [
    "Is the {a} to the left or to the right of the {b}?",
    "Is the {a} left or right of the {b}?",
    "On which side of the {b} is the {a}, left or right?",
    "Left or right: where is the {a} relative to the {b}?",
]
ABOVE_BELOW = [
    "Is the {a} above or below the {b}?",
    "Above or below: where is the {a} relative to the {b}?",
    "Is the {a} higher or lower than the {b}? Say above or below.",
]
FURTHER = {
    "left": ["Which is further left, the {a} or the {b}?", "Which one is more to the left, the {a} or the {b}?"],
    "right": ["Which is further right, the {a} or the {b}?", "Which one is more to the right, the {a} or the {b}?"],
    "up": ["Which is higher, the {a} or the {b}?", "Which one is further up, the {a} or the {b}?"],
    "down": ["Which is lower, the {a} or the {b}?", "Which one is further down, the {a} or the {b}?"],
}
COUNT_ALL = [
    "How many shapes are there?",
    "How many shapes do you see?",
    "How many objects are there?",
    "Count the shapes.",
    "How many shapes are in the picture?",
    "How many objects are in the image?",
    "How many things do you see?",
    "What is the number of shapes?",
    "Count the objects.",
    "How many shapes can you count?",
]
COUNT_OF = [
    "How many {p} are there?",
    "How many {p} do you see?",
    "Count the {p}.",
    "How many {p} are in the picture?",
    "How many {p} are in the image?",
    "What is the number of {p}?",
    "How many {p} can you see?",
    "How many {p}?",
]
EXISTS = [
    "Is there a {o}?",
    "Is there a {o} in the picture?",
    "Do you see a {o}?",
    "Can you see a {o}?",
    "Does the image show a {o}?",
    "Is there a {o} in the image?",
]
READ = [
    "What does it say?",
    "What does the text say?",
    "Read the word.",
    "Read the text.",
    "What is written here?",
    "What word is printed?",
    "What is the word?",
    "Which word do you see?",
    "What word is in the picture?",
    "What does the sign say?",
    "What is written in the image?",
    "What text is in the image?",
    "Read it.",
    "What word is shown?",
    "Which word is printed in the picture?",
    "What does the word say?",
]
NO_TEXT = "there is no text"
DIGITS = [
    "Which digits are written?",
    "What digits do you see?",
    "Read the digits.",
    "Read the handwritten digits.",
    "Which digits are in the picture?",
    "What number is written?",
    "What is the handwritten number?",
    "Read the number.",
    "Which digits do you see?",
    "What digits are written here?",
    "What are the digits?",
    "Read the handwriting.",
]
SAME = {
    "colour": [
        "Do the two pictures show the same colour?",
        "Is the colour the same in both pictures?",
        "Do both images have the same color?",
        "Are the two shapes of the same colour?",
        "Same colour?",
    ],
    "shape": [
        "Do the two pictures show the same shape?",
        "Is the shape the same in both pictures?",
        "Do both images show the same shape?",
        "Are the two shapes the same?",
        "Same shape?",
    ],
    "count": [
        "Do both pictures have the same number of shapes?",
        "Are there equally many shapes in both images?",
        "Is the number of shapes the same in both pictures?",
    ],
}
MORE = {
    "more": [
        "Which picture has more shapes?",
        "Which image has more shapes?",
        "Which picture shows more objects?",
        "Where are there more shapes, in the first or in the second picture?",
        "Which one has more shapes?",
    ],
    "fewer": [
        "Which picture has fewer shapes?",
        "Which image has fewer shapes?",
        "Which picture shows fewer objects?",
        "Which one has fewer shapes?",
    ],
}
DIFFERENT = [
    "What is different?",
    "What is the difference between the two pictures?",
    "What changed?",
    "What differs between the images?",
    "What is the difference?",
]
NTH = {
    "shape": [
        "What shape is in the {n} picture?",
        "Which shape is in the {n} image?",
        "What shape does the {n} picture show?",
    ],
    "colour": [
        "What colour is the shape in the {n} picture?",
        "What color is the shape in the {n} image?",
        "Which colour is in the {n} picture?",
    ],
    "count": ["How many shapes are in the {n} picture?", "How many shapes does the {n} image have?"],
}
ORDER = ["first", "second", "third"]
WHICH = [
    "Which picture shows {o}?",
    "Which image shows {o}?",
    "In which picture is there {o}?",
    "Which of the three pictures shows {o}?",
]
GROUND = [
    "<|ref|>the {o}<|/ref|>",
    "<|ref|>the {o}<|/ref|>.",
    "<|ref|>The {o}.<|/ref|>",
    "<|ref|>The {o}<|/ref|>.",
    "<|ref|>{o}<|/ref|>",
    "Locate <|ref|>the {o}<|/ref|> in the given image.",
    "Locate the {o}.",
    "Locate the {o} in the image.",
    "Find the {o}.",
    "Give the box of the {o}.",
    "Give the bounding box of the {o}.",
    "Draw a box around the {o}.",
    "<|grounding|>Where is the {o}?",
    "<|grounding|>Locate the {o}.",
    "<|grounding|>The {o}.",
]
GROUND_ALL = [
    "<|ref|>all {o}<|/ref|>",
    "<|ref|>all {o}<|/ref|>.",
    "<|ref|>all the {o}<|/ref|>",
    "Locate all {o}.",
    "Locate all {o} in the image.",
    "Find all {o}.",
    "Give the boxes of all {o}.",
    "Draw a box around each of the {o}.",
    "<|grounding|>Locate all {o}.",
    "<|grounding|>All {o}.",
]
MOTION = [
    "Which way does the {o} move?",
    "In which direction does the {o} move?",
    "Where does the {o} go?",
    "Which direction is the {o} moving in?",
    "How does the {o} move?",
    "Which way is the {o} moving?",
    "In what direction does the {o} move?",
    "Which way does the {o} go?",
]
SPEED = [
    "Does the {o} move fast or slowly?",
    "How fast does the {o} move?",
    "Is the {o} fast or slow?",
    "Is the {o} moving fast or slowly?",
    "What is the speed of the {o}?",
]
STILL = "it stays still"


def a(noun):
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def corpus(grounding=False):
    """Lines from which the byte pair encoding is learnt: every phrase, each about as often as it occurs. With
    grounding, those of pictures and boxes; else those of pictures and clips."""
    fills = {
        "{c}": list(COLOURS),
        "{s}": SHAPES,
        "{at}": list(AT.values()),
        "{n}": ["first", "second"],
        "{p}": [PLURALS[s] for s in SHAPES] + [f"{c} shapes" for c in COLOURS],
        "{o}": [f"{c} {s}" for c in COLOURS for s in SHAPES],
        "{a}": SHAPES,
        "{b}": [f"{c} {s}" for c in COLOURS for s in SHAPES],
    }
    groups = [
        DESCRIBE,
        DESCRIBE_CLIP,
        SHAPE_ONE,
        SHAPE_OF,
        SHAPE_AT,
        COLOUR_ONE,
        COLOUR_OF,
        COLOUR_AT,
        WHERE,
        LEFT_RIGHT,
        ABOVE_BELOW,
        COUNT_ALL,
        COUNT_OF,
        EXISTS,
        READ,
        DIGITS,
        DIFFERENT,
        *([GROUND, GROUND_ALL, WHICH] if grounding else []),
        MOTION,
        SPEED,
        SUFFIXES,
        PREFIXES,
        SYSTEMS,
    ]
    groups += list(FURTHER.values()) + list(SAME.values()) + list(MORE.values()) + list(NTH.values())
    lines = []
    for group in groups:
        for phrase in group:
            variants = [phrase]
            for key, values in fills.items():
                if key in phrase:
                    variants = [v.replace(key, x) for v in variants for x in values][:80]
            lines += variants + [phrase.lower() for phrase in variants[:4]] * 2
    for questions, answer in TEXT_ONLY_BOXES if grounding else TEXT_ONLY:
        lines += questions * 4 + [answer] * 12
    for c in COLOURS:
        lines += [c] * 60
        for s in SHAPES:
            lines += [f"{a(c)} {s} {AT[p]}, {a(c)} {s} {AT[p]} and {a(c)} {s} {AT[p]}." for p in AT]
            lines += [f"A {c} {s} moves to the left. A {c} {s} moves up. A {c} {s} moves down. A {c} {s} stays still."]
    for word in (
        SHAPES + NUMBERS + list(PLURALS.values()) + [p for row in PLACES for p in row] + ["first", "second", "picture"]
    ):
        lines += [word, "the " + word, " " + word] * 20
    lines += ["There are " + n + " shapes." for n in NUMBERS] * 20
    lines += [
        "The printed word",
        " and the word",
        "The handwritten digits",
        NO_TEXT,
        STILL,
        "yes",
        "no",
        "above",
        "below",
        "fast",
        "slowly",
        "the first",
        "the second",
        "nothing",
        "the colour",
        "the shape",
        "both the same",
        "system\n",
        "user\n",
        "assistant\n",
        "Picture 1: ",
        "Picture 2: ",
        "Video 1: ",
    ] * 60
    if grounding:
        lines += ["This is image_1: ", "This is image_2: ", "[[1, 2, 3, 4], [5, 6, 7, 8]]", "the third"] * 60
    lines += list(string.printable.strip())
    return lines
