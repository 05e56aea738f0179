"""Who stands for the manager's office, and when a holder acts: pure rules over what a candidate saw, and when.

A candidate reads the office's row and pings the holder that it names. From both follows a `View`; `decide` says what to do,
by the table `RULES`. `docs/election.md` argues why two never act at once; what it rests on:

- A holder acts until `SAFE_PART` of a term after its last successful taking or extending *began*, so that whoever has seen
  the same beat for a whole term comes later, even if all clocks run up to 5 % wrong.
- A candidate that deposes a holder whose beat moves has the term at once, but acts only when that holder has said in the row
  that it stopped, or a whole term after its last extension: `may_begin`.
- The row is left vacant, and `stopped` raised, only by a holder that had begun.

Times are seconds of the candidate's own monotonic clock; clocks of machines are never compared. Nothing here knows SQL or
sockets.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from enum import Enum

from cluster.messages import Pong

# Parts of `term_s`.
SAFE_PART = 0.9  # when the holder stops, against clocks that run at slightly different speeds
EXTEND_PART = 0.25  # how often the holder extends
WATCH_PART = 0.125  # how often a candidate reads the row and pings the holder
PATIENCE_PART = 0.5  # a candidate waits up to this much longer than it must, so that not all ask at once
ASK_PART = 0.25  # how long members may take to say whether they hear a manager
ABSTAIN_PART = 2.0  # how long who stepped down lets others go first
STUCK_PART = 1.0  # processor time that the holder's event loop may use without going round
HUNG_PART = 10.0  # the same in time that passes, however little of the processor it gets

# The length of a term follows how late the holder's extensions are.
LATE_FACTOR = 6.0  # a term is at least so much longer than an extension takes
CALM_FACTOR = 0.8  # what each extension in time leaves of a term that is longer than it must be
STORM_FACTOR = 2.0  # how much longer the term is that follows a holder who fell silent and had been late before
LATE_TERM_FACTOR = 1.5  # times `term_s`: the office lasts longer than that only where extensions were late just before
LONGEST_FACTOR = 5.0  # times `term_s`, at most


@dataclass(frozen=True)
class OfficeRow:
    """What the row says. `stopped`: the holders of the terms up to this one have said that they act no more. `lasts_s`: for how
    long the office lasts from the beat on; 0: as long as it is configured to.
    """

    term: int  # number of the newest term; 0: there was none
    server: str  # of the holder; empty: vacant
    address: str  # where the holder answers
    beat: int  # raised with each extension and each change of the holder
    stopped: int = 0
    lasts_s: float = 0.0

    @property
    def vacant(self) -> bool:
        return not self.server


class Seat(Enum):
    """What the row says of the office."""

    UNREAD = "not read yet"
    ASIDE = "held or vacant, and this candidate stands aside"
    VACANT = "vacant"
    HELD = "held"


class Voice(Enum):
    """What is heard of the holder that the row names."""

    HEARD = "heard within a term"
    UNSURE = "not heard, but not for long enough"
    SILENT = "not heard for a term and this candidate's patience"


class Beat(Enum):
    """What the row shows of its holder."""

    MOVING = "changed within a term"
    STILL = "the same for a term"


ANY_VOICE = frozenset(Voice)
ANY_BEAT = frozenset(Beat)


class Step(Enum):
    """What a candidate does."""

    WATCH = "watch on"
    STAND = "take the next term"
    ASK_ANSWERING = "ask all; take the next term if most of those who answer hear no manager"
    ASK_ALL = "ask all; depose the holder if most of all members answer that they hear no manager"


@dataclass(frozen=True)
class Rule:
    """What to do in which situations; `why` is for the documentation."""

    seats: Collection[Seat]  # all that the rule is for, as are the next two
    voices: Collection[Voice]
    beats: Collection[Beat]
    step: Step
    why: str


RULES = (
    Rule({Seat.UNREAD}, ANY_VOICE, ANY_BEAT, Step.WATCH, "the catalog has not answered yet"),
    Rule({Seat.ASIDE}, ANY_VOICE, ANY_BEAT, Step.WATCH, "it stepped down; another has two terms' time"),
    Rule({Seat.VACANT}, ANY_VOICE, ANY_BEAT, Step.STAND, "the last holder stopped in order; compare-and-set decides who follows"),
    Rule({Seat.HELD}, {Voice.HEARD, Voice.UNSURE}, ANY_BEAT, Step.WATCH, "there is a manager, or it is too early to tell"),
    Rule({Seat.HELD}, {Voice.SILENT}, {Beat.STILL}, Step.ASK_ANSWERING, "by its own clock the holder cannot act any more"),
    Rule({Seat.HELD}, {Voice.SILENT}, {Beat.MOVING}, Step.ASK_ALL, "the holder works; it may be this candidate that is cut off"),
)


@dataclass(frozen=True)
class View:
    """What a candidate knows. Made by `watching`, and from there by `saw`, `answered`, `refused` and `stepped_aside`."""

    term_s: float  # the configured length of a term
    patience: float  # part of a term that this candidate waits longer than it must; drawn at random
    quiet_s: float  # when the holder last said that it is in office (if `heard`), else since when it is listened for
    heard: bool = False  # the holder has said that it is in office
    denied_s: float | None = None  # since when it says that it is not
    row: OfficeRow | None = None  # as read last; None before the first time
    still_s: float = 0.0  # when the row's term and beat were first read
    aside_term: int = -1  # it stepped down from this term
    aside_until_s: float = -math.inf  # and lets others go first until then
    ask_after_s: float = -math.inf  # when the members may be asked again
    refusals: int = 0  # how often most of them heard a manager, in a row

    @property
    def lasts_s(self) -> float:
        """How long the office lasts without being extended."""
        return max(self.term_s, self.row.lasts_s if self.row is not None else 0.0)


@dataclass(frozen=True)
class Watch:
    """Nothing to do now."""


@dataclass(frozen=True)
class Ask:
    """Ask the members whether they hear a manager; `elected` says what follows."""

    row: OfficeRow
    still_s: float
    of_all: bool

    def stand(self) -> "Stand":
        """What is done after being elected."""
        return Stand(self.row, self.still_s, clear=not self.of_all)


@dataclass(frozen=True)
class Stand:
    """Take the term after the row's by compare-and-set, and act when `may_begin` says so.

    The row must be as it was first seen at `still_s`. If the holder has only extended it since, it is taken all the same, unless
    `clear`: that the row's holder has stopped for certain.
    """

    row: OfficeRow
    still_s: float
    clear: bool


class Taken(Enum):
    """How a compare-and-set ended."""

    LOST = "somebody else was faster, or the holder is alive after all"
    UNKNOWN = "the database failed: if it was taken, nobody acts in that term"
    UNCHANGED = "nothing had changed since the row was read"
    DEPOSED = "the holder had extended it meanwhile"


Action = Watch | Ask | Stand


# ------------------------------------------------------------------------------------------------ what is learnt


def watching(term_s: float, draw: float, now: float) -> View:
    """The view of a candidate that begins to watch; *draw* is random, from 0 to 1."""
    return View(term_s, PATIENCE_PART * draw, now)


def saw(view: View, row: OfficeRow, now: float) -> View:
    """Takes what was read before *now*."""
    known = view.row
    # Another holder: what was heard of the one before says nothing about it.
    if known is None or (known.term, known.server) != (row.term, row.server):
        fresh = replace(view, quiet_s=now, heard=False, denied_s=None, ask_after_s=-math.inf, refusals=0)
        return replace(fresh, row=row, still_s=now)
    if known.beat != row.beat:
        return replace(view, row=row, still_s=now)
    return replace(view, row=row)


def answered(view: View, pong: Pong, sent_s: float) -> View:
    """Takes what came back on a ping that was sent at *sent_s* to the holder's address."""
    row = view.row
    if row is None or pong.server != row.server:
        return view
    if not pong.in_office:
        # The first denial counts: repeats must not put off the time at which it is taken for silent.
        return replace(view, heard=False, denied_s=sent_s if view.denied_s is None else view.denied_s)
    if pong.term < row.term:
        return view  # it does not know yet that its term is over
    return replace(view, heard=True, quiet_s=max(view.quiet_s, sent_s), denied_s=None, ask_after_s=-math.inf, refusals=0)


def refused(view: View, now: float) -> View:
    """The members hear a manager: asks again soon, and then less and less often."""
    # From an eighth of a term up to a whole one.
    pause = min(2.0**view.refusals * WATCH_PART, 1.0) * view.term_s
    return replace(view, ask_after_s=now + pause, refusals=min(view.refusals + 1, 10))


def stepped_aside(view: View, term: int, now: float) -> View:
    """Lets others follow *term* first."""
    return replace(view, aside_term=term, aside_until_s=now + ABSTAIN_PART * view.term_s)


# -------------------------------------------------------------------------------------------- what follows from it


def seat(view: View, now: float) -> Seat:
    if view.row is None:
        return Seat.UNREAD
    # In a later term than the one it left it may stand like anybody.
    if view.row.term <= view.aside_term and now < view.aside_until_s:
        return Seat.ASIDE
    return Seat.VACANT if view.row.vacant else Seat.HELD


def voice(view: View, now: float) -> Voice:
    patience_s = view.patience * view.term_s
    if view.denied_s is not None:
        return Voice.SILENT if now - view.denied_s >= patience_s else Voice.UNSURE
    gap_s = now - view.quiet_s
    if view.heard and gap_s < view.lasts_s:
        return Voice.HEARD
    return Voice.SILENT if gap_s >= view.lasts_s + patience_s else Voice.UNSURE


def beat(view: View, now: float) -> Beat:
    return Beat.STILL if now - view.still_s >= view.lasts_s else Beat.MOVING


def hears(view: View, now: float) -> bool | None:
    """Whether this candidate, which is not in office itself, hears a manager; None while it cannot know."""
    if view.row is None:
        return None
    if view.row.vacant or view.denied_s is not None or now - view.quiet_s >= view.lasts_s:
        return False
    return True if view.heard else None


def hears_for(view: View, term: int, now: float) -> bool | None:
    """As `hears`, for a candidate that asks about *term*: of a later one it has not seen the holder yet."""
    if view.row is not None and view.row.term > term:
        return True
    return hears(view, now)


def step(seat: Seat, voice: Voice, beat: Beat) -> Step:
    """What the table says."""
    (found,) = [rule.step for rule in RULES if seat in rule.seats and voice in rule.voices and beat in rule.beats]
    return found


def decide(view: View, now: float) -> Action:
    """What the candidate does now."""
    row = view.row
    what = step(seat(view, now), voice(view, now), beat(view, now))
    if row is None or what is Step.WATCH:
        return Watch()
    if what is Step.STAND:
        return Stand(row, view.still_s, clear=True)
    if now < view.ask_after_s:
        return Watch()
    return Ask(row, view.still_s, of_all=what is Step.ASK_ALL)


def is_decided(answers: Mapping[str, bool], members: int) -> bool:
    """Whether no further answer can matter: most of all members hear no manager. *answers*: of others, by server."""
    return 2 * _deaf(answers) > members


def elected(ask: Ask, answers: Mapping[str, bool], members: int) -> bool:
    """Whether who asked may stand. *members* counts those who did not answer, and who asks, too."""
    return 2 * _deaf(answers) > (members if ask.of_all else len(answers) + 1)


def _deaf(answers: Mapping[str, bool]) -> int:
    # Who asks counts itself: it hears none, else it would not ask.
    return 1 + sum(not heard for heard in answers.values())


# ----------------------------------------------------------------------------------------------------- in office


def safe_until(began_s: float, lasts_s: float) -> float:
    """Until when a holder acts whose last success, taking or extending, began at *began_s* and made the office last *lasts_s*."""
    return began_s + SAFE_PART * lasts_s


def lasts_at_first(stand: Stand, term_s: float) -> float:
    """How long the office lasts when it is taken: longer after a holder who was late and fell silent, since the next may be as
    late. One that was in time has died.
    """
    known_s = max(term_s, stand.row.lasts_s)
    was_too_late = stand.clear and not stand.row.vacant and known_s > term_s * LATE_TERM_FACTOR
    return min(known_s * STORM_FACTOR, term_s * LONGEST_FACTOR) if was_too_late else known_s


def lasts_from_now(lasts_s: float, took_s: float, term_s: float) -> float:
    """How long the office lasts with the next beat, when the last one took *took_s* from when it was due."""
    return min(max(term_s, took_s * LATE_FACTOR, lasts_s * CALM_FACTOR), term_s * LONGEST_FACTOR)


def is_stuck(passed_s: float, processor_s: float, term_s: float) -> bool:
    """Whether the holder's event loop, which went round *passed_s* ago and has had *processor_s* since then, is not to be trusted
    with the office. On a busy machine it gets little of the processor, and that is no fault of its own.
    """
    return processor_s >= STUCK_PART * term_s or passed_s >= HUNG_PART * term_s


def last_extension_s(stand: Stand, taken: Taken, taken_s: float) -> float:
    """When the last extension of any earlier term had begun for certain; *taken_s*: when the compare-and-set was through."""
    return stand.still_s if taken is Taken.UNCHANGED else taken_s


def may_begin(stand: Stand, taken: Taken, taken_s: float, stopped: int, now: float, lasted_s: float) -> bool:
    """Whether a holder whose compare-and-set was through at *taken_s* may act: nobody before it does any more.

    *lasted_s*: how long the office lasted with the last beat before.
    """
    if stand.clear or stopped >= stand.row.term:
        return True
    return now - last_extension_s(stand, taken, taken_s) >= lasted_s
