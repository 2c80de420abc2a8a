"""Questions and answers about Berth, and paragraphs about it to continue."""

from random import Random

from training import berth_commands
from training.berth_topics import ABOUT, LIFE, TRAFFIC, Topic
from training.grammar import Exchange, casual, expand, pick

# name: (default or "", what it sets, words people use for it)
SETTINGS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "APP_HOST": ("0.0.0.0", "the address that Berth listens on", ("the address of Berth", "the host")),
    "APP_PORT": ("5000", "the port that Berth listens on", ("Berth's port", "the port of the server")),
    "APP_DEBUG": ("false", "whether Berth runs in debug mode", ("debug mode", "debugging")),
    "VLLM_BASE_PORT": ("9000", "the first port for engines", ("the first engine port", "the ports of engines")),
    "VLLM_MAX_INSTANCES": ("20", "how many instances may run at once", ("the number of instances", "the instance limit")),
    "VLLM_DEFAULT_DTYPE": ("auto", "the data type of an engine's weights", ("the dtype", "the data type")),
    "VLLM_DEFAULT_KV_CACHE_DTYPE": ("auto", "the data type of the KV cache", ("the KV cache's dtype",)),
    "VLLM_DEFAULT_TRUST_REMOTE_CODE": ("true", "whether vLLM may run code of a model's repository", ("trusting remote code",)),
    "VLLM_DEFAULT_TIMEOUT": ("600", "after how many idle seconds an instance expires; 0 means never", ("the idle timeout", "idle expiry")),
    "VLLM_CONFIG": ("", "the file with default parameters for engines", ("the file of default parameters",)),
    "HF_ENDPOINT": ("", "where models are downloaded from", ("the download mirror",)),
    "HF_HOME": ("", "the folder of the model cache", ("the model cache",)),
    "HTTP_PROXY": ("", "the proxy for downloads; Berth's own loopback calls never use it", ("the download proxy",)),
    "DEFAULT_ENGINE": ("", "which engine runs a model: auto, engine, vllm or command", ("the kind of engine", "the engine")),
    "DEFAULT_MODEL": ("", "the model for requests that name none", ("the default model",)),
    "VLLM_PYTHON": ("", "the Python of the environment that vLLM lives in", ("the vLLM environment",)),
    "MODEL_DIRS": ("", "the folders in which Berth looks for models", ("the model folders",)),
    "STATE_DIR": ("", "the folder for Berth's state", ("the state folder",)),
    "WARM_SPARES": ("", "how many engine processes are kept warm in advance", ("warm spares",)),
    "START_TIMEOUT": ("", "how long an engine may take to start", ("the start time-out",)),
    "STOP_GRACE": ("", "how long a stopping engine may take before it is killed", ("the grace period",)),
    "DRAIN_TIMEOUT": ("", "how long draining may take", ("the drain time-out",)),
    "MAX_QUEUE": ("", "how many requests may wait for an instance", ("the queue length", "the queue")),
    "MAX_IN_FLIGHT": ("", "how many requests an instance serves at once", ("the concurrency", "requests in flight")),
    "AUTOSTART": ("", "whether a request may start the model that it names", ("starting on demand",)),
    "EXPIRE_ACTION": ("", "what happens to an idle instance: stop, sleep1 or sleep2", ("what happens on expiry",)),
    "MODELS_FILE": ("", "the catalog's file, models.yaml", ("the catalog's place",)),
    "STATE_URL": ("", "the store: sqlite:///..., memory:// or redis://...", ("the store", "the database")),
    "ON_SHUTDOWN": ("", "what happens to engines when Berth stops: stop or detach", ("what happens on shutdown",)),
    "API_KEYS": ("", "the keys of those who ask models", ("the API keys",)),
    "ADMIN_API_KEYS": ("", "the keys of those who manage instances", ("the admin keys",)),
    "LOG_FORMAT": ("", "how Berth logs: text or json", ("the log format",)),
    "LOG_DIR": ("", "the folder for engine logs", ("the log folder", "the place of the logs")),
}  # fmt: skip
_OF_NAME = ("What is {}", "What does {} [do|mean|set]", "Explain {}", "[Describe|Define] {}", "What is [the setting|the variable|] {} [for|about]", "{}", "Tell me about {}")
_OF_DEFAULT = ("What is the default [value|] [of|for] {}", "[Default of|Default value of] {}", "What is {} by default", "Which [default|value] has {}", "What is {} set to by default")
_OF_SUBJECT = ("[Which|What] setting [changes|sets|controls|is for|decides] {}", "How do I [change|set|configure] {}", "[Where|How] [can I|do I] [set|change] {}", "What [variable|env variable] [sets|changes] {}")
_DEFAULTS = {
    "APP_PORT": ("Berth's port", "the port of Berth", "the server's port"),
    "VLLM_BASE_PORT": ("the base port", "the first port of the engines", "the engines' first port"),
    "VLLM_MAX_INSTANCES": ("the instance limit", "the maximum number of instances"),
    "VLLM_DEFAULT_TIMEOUT": ("the idle timeout", "the timeout", "the time-out", "the idle time-out of an instance"),
}
LEADS = (
    "Berth is an instance manager for LLM engines.", "Berth is a server that runs many models on one machine.",
    "Berth gives every LLM engine a berth.",
)  # fmt: skip


def _setting(rng: Random) -> Exchange:
    name = rng.choice(list(SETTINGS))
    default, meaning, subjects = SETTINGS[name]
    about = f"{name} sets {meaning}." + (f" The default is {default}." if default else "")
    form = rng.random()
    if form < 0.4:
        return Exchange(pick(_OF_NAME, rng).replace("{}", name) + "?", about)
    if form < 0.7 and default:
        subject = rng.choice((name, name, *_DEFAULTS.get(name, ())))
        return Exchange(pick(_OF_DEFAULT, rng).replace("{}", subject) + "?", f"{name} is {default} by default.", default)
    subject = rng.choice((meaning.split(";")[0].split(":")[0], *subjects, *subjects))
    return Exchange(pick(_OF_SUBJECT, rng).replace("{}", subject) + "?", f"Set {name} in .env. It sets {meaning}.", name)


def _topic(topics: tuple[Topic, ...], rng: Random) -> Exchange:
    questions, answer = rng.choice(topics)
    return casual(Exchange(pick(questions, rng).rstrip("?") + "?", answer), rng)


def exchange(rng: Random) -> Exchange:
    """A question about Berth: what it is, its life cycle, its traffic, a setting or a command."""
    kind = rng.random()
    if kind < 0.1:
        return _topic(ABOUT[:1], rng)
    if kind < 0.28:
        return _topic(ABOUT, rng)
    if kind < 0.62:
        return _topic(LIFE + TRAFFIC, rng)
    return _setting(rng) if kind < 0.78 else berth_commands.exchange(rng)


def paragraph(rng: Random) -> str:
    """Raw text: a few true sentences about Berth in a row."""
    first = rng.choice((*LEADS, ABOUT[0][1]))
    drawn = rng.sample([answer for _, answer in ABOUT[:-3] + LIFE + TRAFFIC[:4]], rng.randint(1, 3))
    kept = [answer for answer in drawn if answer != first and not answer.startswith(("Yes", "No"))]
    return " ".join([first, *kept]) if rng.random() < 0.7 else expand(_setting(rng).answer, rng)
