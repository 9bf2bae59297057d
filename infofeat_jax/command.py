"""The command: its flags, and the call behind `infofeat-jax`, `python -m infofeat_jax` and main.py."""

import pathlib
import re
import sys

from absl import app, flags
from ml_collections import config_flags

from infofeat_jax import __version__, cli, config_checks, config_help
from infofeat_jax import config as configs
from infofeat_jax.types import InvalidInput

FLAGS = flags.FLAGS
USAGE = """Trains and evaluates robust classifiers.

  infofeat-jax --config=digits                       # InfoFeature on an embedded data set; the same as
  python main.py --config=configs/digits.py          # in a checkout
  infofeat-jax --config=cifar10_wrn:madry            # another method
  infofeat-jax --config=digits --config.attack.epsilon=16 --workdir=runs/mine
  infofeat-jax --config=digits --mode=evaluate --config.eval.attacks="('clean','pgd50')"

Run the same command again to continue an interrupted run. --helpfull explains every field of the configuration.
"""
MODES = ["train", "evaluate", "report"]
CONFIGS = pathlib.Path(__file__).parent / "configs"


def main() -> None:
    """Runs the command; mistakes end it with one line and the exit status of `cli.one_line_errors`."""
    sys.modules["__main__"].__doc__ = USAGE  # which absl prints
    define_flags()
    with cli.one_line_errors():
        app.run(_execute, flags_parser=lambda argv: parse_flags(FLAGS, argv))


def define_flags() -> None:
    """Defines the command's flags."""
    config_flags.DEFINE_config_file(
        "config", None, "NAME, a configuration of infofeat_jax, or FILE.py; then :METHOD, of a study :SCALE."
    )
    flags.DEFINE_string(
        "workdir", "", "The directory of the run or study; by default runs/CONFIG/METHOD, runs/STUDY[-SCALE]."
    )
    flags.DEFINE_enum("mode", "train", MODES, "Train and evaluate, or only evaluate or report.")
    flags.DEFINE_list("trust", [], "Parts of one's own (package.module:name) of saved configurations to import.")
    flags.DEFINE_string("coordinator", "", "host:port of process 0 of a multi-host run, or auto (TPU pods, SLURM).")
    flags.DEFINE_integer("num_processes", 0, "Number of processes of the multi-host run.")
    flags.DEFINE_integer("process_id", -1, "The index of this process, from 0.")


def _execute(_) -> None:
    hosts = FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id
    if FLAGS.config is None:  # for a report
        config, file = configs.default(), ""
    else:
        config, file = FLAGS.config, FLAGS["config"].config_filename
    cli.execute(config, file, workdir=FLAGS.workdir, mode=FLAGS.mode, hosts=hosts, trust=FLAGS.trust)


def parse_flags(values: flags.FlagValues, argv: list[str]) -> list[str]:
    """Parses the flags with absl; mistakes in --config and --config.* raise InvalidInput, in one line."""
    if asked := _information(values, {f"--{argument.lstrip('-')}" for argument in argv[1:] if argument[:1] == "-"}):
        print(asked)
        sys.exit(0)
    argv = [shipped(argument) for argument in argv]
    try:
        rest = values(argv, known_only=False)
        config = values["config"].value
        missing = config is None or not config.to_dict()  # a file that failed to load raises when it is read
    except flags.Error as error:
        raise InvalidInput(_brief(str(error))) from None
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise InvalidInput(_unknown_field(argv) or f"--config: {' '.join(str(error).split())}") from None
    if words := rest[1:]:
        raise InvalidInput(_no_flag(words))
    if missing and not _reports_directory(values):
        raise InvalidInput("no --config: give an experiment, as --config=configs/digits.py or --config=digits")
    return rest


def _information(values: flags.FlagValues, asked: set[str]) -> str:
    """What --help, --helpfull or --version print, or "". absl would list no flags of these, and exit with 1."""
    if "--version" in asked:
        return f"infofeat_jax {__version__}"
    usage = f"{USAGE}{values.module_help(__name__)}"
    if "--helpfull" in asked:
        return f"{usage}\n\n{config_help.text()}"
    return usage if asked & {"--help", "--h", "--?"} else ""


def shipped(argument: str) -> str:
    """`--config=NAME` with the file of that name, of those that come with infofeat_jax. Raises InvalidInput."""
    match = re.fullmatch(r"(--?config=)([^:]*)(:.*)?", argument)
    if not match or not match[2] or ".py" in match[2]:
        return argument
    folders = CONFIGS, CONFIGS / "studies", CONFIGS / "recipes"
    files = {path.stem: path for folder in folders for path in folder.glob("[!_]*.py")}
    del files["scales"]  # what the studies share
    name = match[2].removeprefix("studies/").removeprefix("recipes/")
    if name not in files:
        raise InvalidInput(f"--config={match[2]}: choose one of {', '.join(sorted(files))}, or give a FILE.py")
    return f"{match[1]}{files[name]}{match[3] or ''}"


def _reports_directory(values: flags.FlagValues) -> bool:
    """Whether the command is a report of a directory, which says itself what it holds."""
    return "mode" in values and values["mode"].value == "report" and bool(values["workdir"].value)


def _no_flag(words: list[str]) -> str:
    """The message about words on the command line that are no flags, such as `report runs/digits`."""
    mode, rest = (words[0], words[1:]) if words[0] in MODES else ("", words)
    places = [word for word in rest if not word.startswith("-")]
    flags = [] if mode == "report" and places else ["--config=CONFIG"]
    flags += [f"--mode={mode}"] * bool(mode) + [f"--workdir={place}" for place in places[:1]]
    return f"{' '.join(words)}: the command takes only flags, such as {' '.join(flags)}; --help has examples"


def _unknown_field(argv: list[str]) -> str:
    """The message about the first flag whose field does not exist; "" if all of them do."""
    fields = {name for name, _ in configs.flatten(configs.default().to_dict())} | {config_checks.OPEN}
    groups = {name.rpartition(".")[0] for name in fields}
    given = (re.match(r"--?(?:no)?config\.([^=]+)", argument) for argument in argv)
    wrong = [match[1] for match in given if match and match[1] not in fields | groups]
    return config_checks.unknown(wrong[0], fields) if wrong else ""


def _brief(text: str) -> str:
    """One line; from the traceback of an error in a --config file, that error and where it was raised."""
    if "Traceback" in text:
        *_, place = re.findall(r'File "(.*?)", line (\d+)', text) or [("a file", "?")]
        text = f"--config: {text.strip().splitlines()[-1]} ({place[0]}, line {place[1]})"
    return " ".join(text.split())
