"""`course`: the one command line of authors and instructors."""

import functools
import http.server
import os
import sys
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

console = Console()
errors = Console(stderr=True)

UNJAILED = (
    "Student code runs with your rights on this machine: kernels are not jailed yet. The judge runs outside of it, "
    "but it could read or write your files, those of the class among them. Grade in an account or a container "
    "that holds nothing but the class, and keep a copy of what was handed in."
)


class _Examples(click.Command):
    """A command whose help ends with its examples, left as they are written."""

    def __init__(self, *args, examples=(), **kwargs):
        super().__init__(*args, **kwargs)
        self.examples = examples

    def format_epilog(self, ctx, formatter):
        with formatter.section("Examples"):
            for example in self.examples:
                formatter.write_text(example)
        with formatter.section("Exit codes"):
            formatter.write_text("0 done; 1 it did not work, the message says why; 2 the command was misspelled")


def _plainly(command):
    """Turn what can go wrong into one sentence and exit code 1; anything else is a bug and shows its traceback."""

    @functools.wraps(command)
    def run(*args, **kwargs):
        from course_lib.authoring.book import BuildError

        try:
            return command(*args, **kwargs)
        except (BuildError, FileNotFoundError, ValueError, RuntimeError, PermissionError) as error:
            errors.print(f"[bold red]course:[/] {escape(str(error))}")
            sys.exit(1)

    return run


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def main():
    """BatchNorm by Building It: build the book, release problem sets, grade a class."""


@main.command(cls=_Examples, examples=["course build", "course build --force"])
@click.option("--force", is_flag=True, help="Build even if nothing has changed.")
@_plainly
def build(force):
    """Build the HTML book into _build/html, with warnings as errors."""
    from course_lib.authoring.book import build_book
    from course_lib.authoring.paths import BOOK, ZIP
    from course_lib.authoring.release import release

    if not ZIP.is_file():
        release()  # the book offers the students' zip for download
    built = build_book(force=force)
    console.print(f"The book is {'built' if built else 'current'}: {BOOK / 'index.html'}", soft_wrap=True)


@main.command(cls=_Examples, examples=["course release"])
@_plainly
def release():
    """Generate exercises/, the student edition and the students' zip from solutions/ and the library."""
    from course_lib.authoring.paths import EXERCISES, ZIP, problem_sets
    from course_lib.authoring.release import release as make

    make()
    console.print(f"Released {', '.join(problem_sets())}: notebooks in {EXERCISES}", soft_wrap=True)
    console.print(f"For students: {ZIP}", soft_wrap=True)


@main.command(cls=_Examples, examples=["course check-release"])
@_plainly
def check_release():
    """Check that what is handed out is current and gives no solution away."""
    from course_lib.authoring.leaks import check_release as problems_of

    problems = problems_of()
    for problem in problems:
        errors.print(f"[red]✗[/] {escape(problem)}", soft_wrap=True)
    if problems:
        sys.exit(1)
    console.print("✓ The release is reproducible to the byte and gives nothing away.")


@main.command(
    cls=_Examples,
    examples=[
        "course grade ps1-algorithm --class ~/classes/2027",
        "course grade ps1-algorithm --class DIR --again",
        "course grade ps1-algorithm ps2-running-stats --class DIR",
    ],
)
@click.argument("problem_sets", metavar="PROBLEM_SET...", nargs=-1, required=True)
@click.option(
    "--class", "folder", required=True, type=click.Path(file_okay=False, path_type=Path),
    help="The class's folder, with submitted/<student>/<problem set>/ in it; outside the repository.",
)  # fmt: skip
@click.option("--again", is_flag=True, help="Grade unchanged submissions again, too.")
@click.option(
    "--jobs", type=click.IntRange(1), help="Kernels at a time; without it one more than there are processors."
)
@click.option("--timeout", type=click.IntRange(1), default=30, show_default=True, help="Seconds a cell may take.")
@_plainly
def grade(problem_sets, folder, again, jobs, timeout):
    """Grade what a class handed in: table here, feedback and gradebook in the class's folder."""
    from course_lib.grading.classroom import Classroom, graders

    rooms = [Classroom(folder, problem_set) for problem_set in problem_sets]
    errors.print(f"[yellow]{UNJAILED}[/]")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of each grading process: there is one per processor already
    with graders(jobs) as pool:
        for room in rooms:
            _grade(room, again=again, timeout=timeout, pool=pool)


def _grade(room, **options):
    from course_lib.grading.record import PERSON

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    records, fresh_ones = [], 0
    with Progress(*columns, console=errors) as progress:
        task = progress.add_task("grading", total=len(room.submissions()))
        for student, record, fresh in room.grade(**options):
            records.append((student, record))
            fresh_ones += fresh
            progress.update(task, advance=1, description=student)
    console.print(_table(room.assignment, records))
    by_hand = [student for student, record in records if record.status == PERSON]
    console.print(
        f"{len(records)} submissions, {fresh_ones} graded now, {len(records) - fresh_ones} unchanged. "
        f"Feedback: {room.folder / 'feedback'}. Gradebook: {room.folder / 'gradebook.db'}.",
        soft_wrap=True,
    )
    if by_hand:
        console.print(f"Needs a person: {', '.join(by_hand)}. The table says why and what to do.", soft_wrap=True)


def _table(problem_set, records):
    table = Table(title=f"{problem_set}, release {records[0][1].release}")
    table.add_column("student", overflow="fold")
    table.add_column("points", justify="right", no_wrap=True)
    table.add_column("what to know", overflow="fold")
    for student, record in records:
        repairs = "".join(f"\n[dim]{escape(repair)}[/]" for repair in record.repairs)
        status = f"[bold]{record.status}:[/] " if record.reason else ""
        table.add_row(
            escape(student),
            f"{record.points:g} / {record.max_points:g}",
            f"{status}{escape(record.message)}{repairs}",
        )
    return table


@main.command(cls=_Examples, examples=["course serve", "course serve --port 9000"])
@click.option("--port", default=8000, show_default=True, type=click.IntRange(1, 65535))
@_plainly
def serve(port):
    """Show the built book on http://localhost, to this machine only, until Ctrl-C."""
    from course_lib.authoring.paths import BOOK

    if not (BOOK / "index.html").is_file():
        raise FileNotFoundError(f"expected the built book in {BOOK}, found none: run `course build` first")
    handler = functools.partial(_Quiet, directory=str(BOOK))
    try:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError as error:
        raise RuntimeError(f"port {port} cannot be used ({error.strerror}): name another one with --port") from None
    with server:
        console.print(f"The book: http://localhost:{port}/ (Ctrl-C ends)", soft_wrap=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            console.print("Ended.")


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        """No line per request."""
