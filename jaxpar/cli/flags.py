"""The options that there are, each declared once: its name, usual value and help.

They are absl's flags, in a set of their own so that a library's flags do not become ours.
"""

from absl import flags

VALUES = flags.FlagValues()
VALUES.set_gnu_getopt(True)

flags.DEFINE_string(
    "strategy",
    "hybrid",
    "how to shard: a name, or names joined by + (fsdp+tensor)",
    flag_values=VALUES,
)
flags.DEFINE_string(
    "mesh",
    None,
    "devices per mesh axis, outermost first: data=4,model=2; auto is the nearest to that of the "
    "run that is resumed",
    flag_values=VALUES,
)
flags.DEFINE_string(
    "hardware",
    "cpu",
    "what to compile for: cpu (simulated CPU devices), local (accelerators of this machine), h100 "
    "or others that are described and need not be here (see list), or a .json file of your own",
    flag_values=VALUES,
)
flags.DEFINE_string(
    "mode",
    "auto",
    "who places the collectives: auto (XLA), explicit (types) or manual (shard_map)",
    flag_values=VALUES,
)
flags.DEFINE_enum(
    "lint",
    "error",
    ["error", "warn"],
    "what it is if the program does not do what the layout asked for: error or warn",
    flag_values=VALUES,
)
flags.DEFINE_bool(
    "what-if",
    False,
    "also compile changes that may make it fit (remat, microbatches, fused attention, more "
    "devices), and tell what each does",
    flag_values=VALUES,
)
flags.DEFINE_string(
    "data", None, "what to train on: digits, text, or a .bin token file", flag_values=VALUES
)
flags.DEFINE_integer("steps", None, "updates to train for, or steps to verify", flag_values=VALUES)
flags.DEFINE_integer("batch", None, "rows in a global batch", flag_values=VALUES)
flags.DEFINE_integer(
    "microbatches", None, "parts of a batch whose gradients are accumulated", flag_values=VALUES
)
flags.DEFINE_integer("seed", None, "of parameters, batches and dropout", flag_values=VALUES)
flags.DEFINE_integer("rounds", 5, "how often bench alternates its two sides", flag_values=VALUES)
flags.DEFINE_float(
    "minutes", None, "how long a benchmark that does harm goes on", flag_values=VALUES
)
flags.DEFINE_multi_string(
    "set",
    [],
    "field=value of the model, training, optimizer or strategy, xla.NAME=value for XLA, or "
    "hardware.NAME=value for its figures; may be repeated",
    flag_values=VALUES,
)
flags.DEFINE_integer(
    "processes",
    None,
    "processes to start on this machine, which share the mesh",
    flag_values=VALUES,
)
flags.DEFINE_string(
    "coordinator",
    None,
    "host:port of process 0, for a process of several that is started by hand",
    flag_values=VALUES,
)
flags.DEFINE_integer(
    "process-id", None, "which process of them this is, from 0", flag_values=VALUES
)
flags.DEFINE_integer("process-count", None, "how many processes there are", flag_values=VALUES)
flags.DEFINE_integer(
    "patience",
    30,
    "seconds that one process may be silent, or behind the others, before all are ended",
    flag_values=VALUES,
)
flags.DEFINE_bool(
    "resume", False, "go on from the newest whole checkpoint of the run folder", flag_values=VALUES
)
flags.DEFINE_string(
    "devices",
    None,
    "how many devices there are: to search layouts for, a range 8..1024 to scale over, or those "
    "that --mesh auto may use (default: all that are here; as many as the run had, if they are "
    "simulated)",
    flag_values=VALUES,
)
flags.DEFINE_string(
    "weights",
    None,
    "an Orbax checkpoint whose weights the run starts from, jaxpar's or any other",
    flag_values=VALUES,
)
flags.DEFINE_string(
    "on-nan",
    None,
    "what becomes of a loss that is no finite number: stop, skip the update, or restore the last "
    "checkpoint and leave out the batches since",
    flag_values=VALUES,
)
flags.DEFINE_string(
    "budget", "120s", "how long layouts are compiled: 90s, 3m or 1h", flag_values=VALUES
)
flags.DEFINE_string(
    "plan", None, "a file that search wrote: its layout, and what it has set", flag_values=VALUES
)
flags.DEFINE_string(
    "out",
    None,
    "folder for files (default: runs/...); of report the page (report.html)",
    flag_values=VALUES,
)
flags.DEFINE_string("picture", None, "save what is shown as an SVG picture", flag_values=VALUES)
flags.DEFINE_string(
    "timeline",
    None,
    "save a predicted step as a trace that ui.perfetto.dev opens",
    flag_values=VALUES,
)
flags.DEFINE_float(
    "price",
    None,
    "of a device for an hour, in any currency: what a step then costs",
    flag_values=VALUES,
)
flags.DEFINE_string(
    "report",
    None,
    "save the record as a page: one HTML file to look at and send",
    flag_values=VALUES,
)
flags.DEFINE_bool("json", False, "one JSON record on standard output", flag_values=VALUES)
flags.DEFINE_bool("verify", False, "after training, verify the layout too", flag_values=VALUES)
flags.DEFINE_bool(
    "traceback", False, "show the whole traceback of an error in your own code", flag_values=VALUES
)
flags.DEFINE_bool("help", False, "show this and stop", short_name="h", flag_values=VALUES)
