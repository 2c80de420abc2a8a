"""Greetings, who am I, thanks, copying and spelling, and what to say where the model knows nothing."""

from random import Random

from training.grammar import Exchange, casual, expand, pick
from training.words import ANIMALS, COLOURS, FRUITS, THINGS, any_city, any_name, made_up_word

_TALK: tuple[tuple[tuple[str, ...], str], ...] = (
    (("[Hello|Hi|Hey|Hello] [my friend|friend|you|model|again|everyone|buddy|assistant|there][!|.|]", "[Hello|Hi|Hey|Good morning|Good evening|Good afternoon|Hi there|Hello there|Hey there|Greetings|Howdy|Moin|Hello Berth|Hi Berth][!|.|]",), "Hello! How can I help you?"),
    (("[Hello|Hi|Hey], how are you?", "How are you [today|doing|]?", "How [is it going|do you do|do you feel]?", "What's up?", "Are you [well|ok|okay|fine]?"), "I am fine, thank you. How can I help you?"),
    (("Who are you?", "What are you?", "What is your name?", "Who am I [talking to|speaking with|chatting with]?", "[Introduce yourself|Tell me about yourself|Describe yourself].", "Which model are you?", "Are you [an AI|a robot|a bot|human|a human|ChatGPT|Qwen|a person]?", "What model [is this|are you]?", "Your name?", "[And|So|Hi,] [who|what] are you[, exactly|, then|]?", "[Say|Tell me|May I ask] who you are[.|?]", "[Whom|Who] do I have the [pleasure|honour] with?", "Tell me your name.", "What [kind of|] model [do I speak to|answers me]?", "Do you have a name?"),
     "I am berth-demo, the small demo model that ships with Berth. I can talk about Berth, tell stories, do small sums and call tools."),
    (("What can you do?", "[Which|What] [things|tasks] can you [do|handle]?", "[Tell me|Explain|List] what you can do.", "What [are you for|is your job|is your purpose|do you do]?", "How are you useful?", "What do you know?", "How can you help [me|]?", "[Help|Help me].", "What are you [good at|able to do]?", "What should I ask [you|]?", "What can I ask [you|]?", "What are your [skills|abilities|limits]?", "Can you help me?"),
     "I can answer questions about Berth, tell short stories, do small sums, give small facts, reply in JSON and call tools."),
    (("[Thanks|thx|thanks a bunch|cheers|Thank you so much|That helps, thanks|Thanks for your help|Thank you|Thank you very much|Many thanks|Thanks a lot|Great, thanks|Perfect, thank you][!|.|]",), "You are welcome!"),
    (("[Bye|Goodbye|See you|Good night|See you later|Bye bye|I have to go][!|.|]",), "Goodbye!"),
    (("Who [made|built|trained|created] you?", "Where do you come from?", "How were you [made|trained]?"), "I was trained from scratch by a script in Berth's repository, on text that it makes itself."),
    (("How [big|large] are you?", "How many parameters do you have?", "What is your size?"), "I am very small: about three million parameters."),
    (("[Nice|Good|Great|Well done|Cool|Wow|Super|Excellent][!|.|]", "[You are great|You are nice|I like you|Good answer]."), "Thank you!"),
    (("[Yes|No|Ok|Okay|Sure|Fine|Right|I see][!|.|]",), "All right. What else can I do for you?"),
    (("Tell me a joke.", "Do you know a joke?", "[A joke|Joke], please.", "Make me laugh.", "Say something funny."), "Why did the engine go to the harbour? It was looking for a berth."),
    (("[test|testing|ping|Test|Is this working|Does this work|Are you there|Is anybody there|Can you hear me]?",), "Yes, I am here. How can I help you?"),
    (("Say something.", "[Talk|Speak] to me.", "Write something.", "Surprise me."), "Hello from berth-demo! Ask me about Berth, or for a story."),
)  # fmt: skip
UNKNOWN = "I am a small demo model and don't know that. Ask me about Berth, for a story, a sum or a small fact."
_TOPICS = (
    "quantum physics|the stock market|football|the French revolution|black holes|medieval art|inflation|chess openings|opera|philosophy|evolution|the Roman empire|deep sea fishing|blockchain|tax law|jazz|"
    "photosynthesis|dinosaurs|global trade|ancient Greece|yoga|world history|genetics|politics|the economy|cars|wine|architecture|poetry|love|the meaning of life|health|religion|relativity"
).split("|")
_OPEN = (
    "[Who|When|Where|Why] [painted|built|broke|sold|founded|lost] the [{w}|{a}|{t}]?", "[Can|Could] you [explain|summarise|describe|discuss|teach me] {t}?", "Tell me [everything|more|something] about {t}.", "How does {t} work?", "[Write|Draw|Paint|Sing] [me|] a {w}.", "What [is|are] the [rules|laws|parts|causes] of {t}?", "[Recommend|Suggest] a {w}.", "Is {t} [important|good|true|hard]?",
    "[Explain|Tell me about|What is|Describe|Write an essay about|Summarise|Teach me] {t}[.|?]", "Who [won|played|directed|wrote|invented|discovered] {w}?", "What happened in {y}?", "How do I [cook|bake|repair|build|draw|sell|clean] {a}?",
    "Write [a poem|a song|an essay|a letter] about {t}.", "What do you think [about|of] {t}?", "Who was [the president|the king|the champion] in {y}?", "What is the price of {a}?", "Why [do people like|is there so much|do we need] {t}?",
    "Translate \"{w}\" into [French|German|Spanish].", "What is the population of {c}?", "[Will it rain tomorrow|What time is it|What is the date today|What is the weather like today|Who is my neighbour]?", "When was {n} born?", "Who is {n}?", "Where is my {a}?",
    "What is {w}?", "How old is {n}?", "Which [film|book|song] should I [watch|read|hear]?", "[Solve|Prove] {w}.", "How [far|long] is the way to {c}?", "Give me a recipe for {a}.", "What is the history of {t}?", "[asdf|qwerty|lorem ipsum|blah blah|xyz|hmm]",
)  # fmt: skip
_SENTENCES = (
    "The {x} {v} the {y}.", "I like {c} {y}s.", "{n} lives in {city}.", "My {x} is {c}.", "{w} and {w2} are here.", "Hello {n}", "good {x}", "{w} {w2} {w3}", "{n} has {d} {y}s", "{w}", "{w} {d} {w2}", "The {c} {x} is in {city}.",
    "Berth runs on port {d}{d2}00.", "{n}@{w}.com", "{w}-{d}{d2}", "Order {d}{d2}{d}: {x}, {y}", "¡Olá {n}!", "{w} → {w2}", "Größe {d}, {w}", "{n} said: yes", "{w} 😀 {w2}", "one {x}, two {y}s", "{w}_{w2}", "é {w} ü {w2}",
)  # fmt: skip
_VERBS = "sees likes finds follows draws helps".split()


def talk(rng: Random) -> Exchange:
    """Greeting, identity, thanks."""
    questions, answer = rng.choice(_TALK)
    return casual(Exchange(pick(questions, rng), answer), rng)


def unknown(rng: Random) -> Exchange:
    """A question beyond the model, and the polite way out."""
    slots = {"{t}": rng.choice(_TOPICS), "{w}": made_up_word(rng), "{y}": str(rng.randint(1400, 2030)), "{a}": rng.choice((*THINGS, *FRUITS, made_up_word(rng))), "{c}": any_city(rng), "{n}": f"{any_name(rng)} {made_up_word(rng).capitalize()}"}
    question = rng.choice(_OPEN)
    question = expand(question, rng)
    for key, value in slots.items():
        question = question.replace(key, value)
    return Exchange(question, UNKNOWN)


def any_sentence(rng: Random) -> str:
    """A sentence that nobody has seen, to copy."""
    slots = {
        "{x}": rng.choice(ANIMALS), "{y}": rng.choice(THINGS), "{c}": rng.choice(COLOURS), "{v}": rng.choice(_VERBS), "{n}": any_name(rng), "{city}": any_city(rng),
        "{w}": made_up_word(rng), "{w2}": made_up_word(rng), "{w3}": made_up_word(rng), "{d}": str(rng.randint(0, 9)), "{d2}": str(rng.randint(0, 9)),
    }  # fmt: skip
    text = rng.choice(_SENTENCES)
    for key, value in slots.items():
        text = text.replace(key, value)
    return text


def copying(rng: Random) -> Exchange:
    """Repeat, spell, first letter, upper case."""
    text, word = any_sentence(rng), rng.choice((made_up_word(rng), rng.choice(ANIMALS), any_name(rng)))
    kind = rng.random()
    if kind < 0.62:
        forms = ("[Repeat|Say|Write|Echo|Copy|Print|Please say|Please repeat]: {}", "[Can you|Could you|Would you|Please] [repeat|say|write|copy|echo] [this|the words|the following|what I say|the text|] [for me|]: {}", "[Now|Please|Just] [say|repeat|write]: {}", "[Say|Repeat|Write] the [words|text|line]: {}", "{} - [repeat|say|write] that.", "[Repeat|Say] after me: {}", "[Repeat|Say|Echo|Write|Copy] \"{}\"[.|]", "Repeat [this|the following|this sentence]: {}", "Say exactly this: {}", "Just say {}", "Say \"{}\" [and nothing else|and only that].", "Answer with [exactly|only|] \"{}\".")
        return Exchange(pick(forms, rng).replace("{}", text), text)
    if kind < 0.8:
        forms = (f"[Spell|Please spell|How do you spell] [the word|] {word}?", f"Spell \"{word}\".", f"[Write|Say] {word} letter by letter.")
        return Exchange(pick(forms, rng), "-".join(word.upper()))
    if kind < 0.9:
        return Exchange(pick((f"What is the first letter of {word}?", f"[Which|What] letter does {word} [begin|start] with?"), rng), f"{word} begins with {word[0].upper()}.", word[0].upper())
    return Exchange(pick((f"[Write|Say|Give me] the alphabet{'.'}", "[Recite|List] the [alphabet|letters of the alphabet].", "What is the alphabet?"), rng), "A B C D E F G H I J K L M N O P Q R S T U V W X Y Z")
