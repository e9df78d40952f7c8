"""Texts of compiled programs for the tests to read, and the collectives found in them."""

from jaxpar.hlo.collectives import Collective, collectives
from jaxpar.hlo.parse import parse

G = "replica_groups={{0,2,4,6},{1,3,5,7}}"
ARRAY_BYTES = 16 * 8 * 4
ONE_REDUCE = f"%r = f32[16,8]{{1,0}} all-reduce(%p), {G}, to_apply=%add"
ADD = """%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}
"""
TABLES = """FileNames
1 "/home/me/model.py"
2 "/home/me/train.py"

FunctionNames
1 "block"
2 "main"

FileLocations
1 {file_name_id=1 function_name_id=1 line=12 end_line=12 column=8 end_column=20}
2 {file_name_id=2 function_name_id=2 line=99 end_line=99 column=1 end_column=9}

StackFrames
1 {file_location_id=2 parent_frame_id=1}
2 {file_location_id=1 parent_frame_id=2}

"""


def program(entry: str, before: str = "", tables: str = "", partitions: int = 8) -> str:
    """A module whose entry holds these lines, `%p = f32[16,8]` standing above them."""
    header = f"HloModule jit_f, is_scheduled=true, num_partitions={partitions}\n"
    lines = "".join(f"  {line.strip()}\n" for line in entry.strip().splitlines())
    top = "ENTRY %main (p: f32[16,8]) -> f32[16,8] {\n  %p = f32[16,8]{1,0} parameter(0)\n"
    return f"{header}\n{tables}\n{ADD}\n{before}\n{top}{lines}}}\n"


def loop(name: str, body: str, start: str = "0", step: str = "1", bound: str = "7") -> str:
    """Body and condition of `for i in range(start, bound, step)`, all in (i, array) tuples."""
    lines = "".join(f"  {line.strip()}\n" for line in body.strip().splitlines())
    return f"""%{name}_body (t: (s32[], f32[16,8])) -> (s32[], f32[16,8]) {{
  %t = (s32[], f32[16,8]{{1,0}}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %one = s32[] constant({step})
  %next = s32[] add(%i, %one)
  %p = f32[16,8]{{1,0}} get-tuple-element(%t), index=1
{lines}  ROOT %out = (s32[], f32[16,8]{{1,0}}) tuple(%next, %r)
}}

%{name}_less (i: s32[]) -> pred[] {{
  %i = s32[] parameter(0)
  %bound = s32[] constant({bound})
  ROOT %lt = pred[] compare(%i, %bound), direction=LT
}}

%{name}_cond (t: (s32[], f32[16,8])) -> pred[] {{
  %t = (s32[], f32[16,8]{{1,0}}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  ROOT %go = pred[] fusion(%i), kind=kLoop, calls=%{name}_less
}}
"""


def run_loop(name: str, array: str, start: str = "0", known: str = "", scope: str = "") -> str:
    scope = f', metadata={{op_name="jit(f)/{scope}/while"}}' if scope else ""
    known = f', backend_config={{"known_trip_count":{{"n":"{known}"}}}}' if known else ""
    return f"""
        %z.{name} = s32[] constant({start})
        %init.{name} = (s32[], f32[16,8]) tuple(%z.{name}, %{array})
        %w.{name} = (s32[], f32[16,8]) while(%init.{name}), condition=%{name}_cond, body=%{name}_body{known}{scope}
        %r = f32[16,8] get-tuple-element(%w.{name}), index=1
    """  # noqa: E501


def found(text: str) -> tuple[Collective, ...]:
    return collectives(parse(text))


def only(text: str) -> Collective:
    (one,) = found(text)
    return one
