"""Trains and evaluates robust classifiers.

  python main.py --config=configs/digits.py                       # InfoFeature on an embedded data set
  python main.py --config=configs/cifar10_wrn.py:madry            # another method
  python main.py --config=configs/digits.py --config.attack.epsilon=16 --workdir=runs/mine
  python main.py --config=configs/digits.py --mode=evaluate --config.eval.attacks="('clean','pgd50')"

Run the same command again to continue an interrupted run.
"""

from absl import app, flags
from ml_collections import config_flags

from infofeat_jax import cli

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "A configuration from configs/; FILE.py:METHOD selects the method.")
flags.DEFINE_string("workdir", "", "The run's directory; runs/CONFIG/METHOD by default.")
flags.DEFINE_enum("mode", "train", ["train", "evaluate", "report"], "Train and evaluate, or only evaluate or report.")
flags.DEFINE_string("coordinator", "", "host:port of process 0 of a multi-host run, or auto (TPU pods, SLURM).")
flags.DEFINE_integer("num_processes", 0, "Number of processes of the multi-host run.")
flags.DEFINE_integer("process_id", -1, "The index of this process, from 0.")


def main(_) -> None:
    hosts = FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id
    file = FLAGS["config"].config_filename
    cli.execute(FLAGS.config, file, workdir=FLAGS.workdir, mode=FLAGS.mode, hosts=hosts)


if __name__ == "__main__":
    with cli.one_line_errors():
        app.run(main, flags_parser=lambda argv: cli.parse_flags(FLAGS, argv))
