//! Rules that change, in steps: what a client of the control socket asks for may be tens of
//! thousands of sockets, and nobody's traffic is to wait for that.
//!
//! The old rules are in force until all sockets of the new ones are bound. Those listen from then
//! on, so that the kernel may queue connections for them, but are looked at by nobody before the
//! new rules are in force; if these cannot be, they are closed again.

use super::place::{Place, Spot};
use super::replace::{Round, is_starved};
use super::report::{Changes, Failure, Refused};
use crate::flow::rules::{InForce, Rules};
use crate::flow::{Protocol, Side};
use crate::host::Relisten;
use crate::host::sockets::Sockets;
use std::collections::BTreeMap;
use std::rc::Rc;

/// What one step may cost: about a millisecond.
const BUDGET: usize = 2048;

/// What opening or closing a socket costs; looking at one that is there costs 1.
const SOCKET: usize = 16;

/// What watching a socket costs.
const WATCH: usize = 2;

/// A change that has begun.
#[derive(Debug)]
pub(in crate::host) struct Change {
    round: Round,
    stage: Stage,
    /// The rules that name their ports, by number: those that must have them first.
    rules: Vec<usize>,
    /// The rule that is being opened, if one is.
    task: Option<Task>,
    /// Of best-effort rules: how many sockets they have, and what failed last.
    tally: BTreeMap<(Side, Protocol), (usize, Option<Refused>)>,
}

#[derive(Debug)]
enum Stage {
    /// The listeners that there are: those before this one are in the round.
    Survey(usize),
    /// Sockets of new rules, from the rule at this index on.
    Open(usize),
    /// It cannot be done: what was opened is closed.
    Undo(Failure),
    /// The new rules are in force: these listeners are not watched yet, and those belong to none.
    Tidy { unwatched: Vec<u32>, gone: Vec<u32> },
}

/// How far one rule has come.
#[derive(Debug)]
struct Task {
    spots: Vec<Rc<Spot>>,
    /// The next port, which may be behind the last.
    port: u32,
    failed: usize,
    last: Option<Refused>,
}

impl Sockets {
    /// Listens as `rules` say and no longer as those before did; watches what is opened as
    /// [`crate::token::Token::Listener`]. Ports of best-effort rules that cannot be had cost a
    /// warning.
    ///
    /// # Errors
    /// A port of a rule that is not best-effort, or the last one tried when of all best-effort
    /// rules of a side and protocol no port at all could be bound; or there would be too many
    /// sockets. Then everything is as it was.
    pub fn listen(&mut self, rules: &Rules) -> Result<Changes, Failure> {
        check_number(rules, self.most_listeners)?;
        let mut change = Change::new(rules, false);
        loop {
            if let Relisten::Done(changes) = change.step(self, rules)? {
                return Ok(changes);
            }
        }
    }

    /// The next step of what [`Sockets::listen`] does, as [`crate::host::Host::relisten`] says.
    pub(in crate::host) fn listen_on(&mut self, rules: &Rules) -> Result<Relisten, Failure> {
        let mut change = match self.change.take() {
            Some(change) => change,
            None => {
                check_number(rules, self.most_listeners)?;
                Box::new(Change::new(rules, true))
            }
        };
        let progress = change.step(self, rules)?;
        if !matches!(progress, Relisten::Done(_)) {
            self.change = Some(change);
        }
        Ok(progress)
    }
}

impl Change {
    /// With `quiet`, new listeners are not watched before the rules are in force.
    fn new(rules: &Rules, quiet: bool) -> Self {
        let fixed = |weak| rules.iter().filter(move |r| !r.rule.auto && r.rule.weak == weak);
        let mut best_effort: Vec<_> = fixed(true).collect();
        best_effort.sort_by_key(|r| (r.side, r.rule.protocol));
        Self {
            round: Round { quiet, ..Round::default() },
            stage: Stage::Survey(0),
            rules: fixed(false).chain(best_effort).map(|r| r.number).collect(),
            task: None,
            tally: BTreeMap::new(),
        }
    }

    fn step(&mut self, sockets: &mut Sockets, rules: &Rules) -> Result<Relisten, Failure> {
        let mut left = BUDGET;
        loop {
            match &mut self.stage {
                Stage::Survey(from) => {
                    let end = from.saturating_add(left);
                    let more = self.round.survey(sockets, *from..end);
                    self.stage = if more { Stage::Survey(end) } else { Stage::Open(0) };
                    if more {
                        return Ok(Relisten::More);
                    }
                }
                Stage::Open(index) => {
                    let index = *index;
                    let outcome = match self.rules.get(index) {
                        Some(&number) => self.open(sockets, rules, number, &mut left),
                        None => match self.nothing_at_all() {
                            None => return Ok(self.commit(sockets, rules)),
                            Some(failure) => Err(failure),
                        },
                    };
                    match outcome {
                        Ok(false) => return Ok(Relisten::More),
                        Ok(true) => self.stage = Stage::Open(index + 1),
                        Err(failure) => self.stage = Stage::Undo(failure),
                    }
                }
                Stage::Undo(_) => {
                    let opened = &mut self.round.opened;
                    if each(opened, &mut left, SOCKET, |id| sockets.close_listener(id))
                        && let Stage::Undo(failure) =
                            std::mem::replace(&mut self.stage, Stage::Survey(0))
                    {
                        return Err(failure);
                    }
                    return Ok(Relisten::More);
                }
                Stage::Tidy { unwatched, gone } => {
                    return Ok(Self::tidy(&mut self.round, sockets, unwatched, gone, left));
                }
            }
        }
    }

    /// Opens sockets of rule `number`, for what is `left` of the step; whether it has all.
    fn open(
        &mut self,
        sockets: &mut Sockets,
        rules: &Rules,
        number: usize,
        left: &mut usize,
    ) -> Result<bool, Failure> {
        let (Some(rule), Some(side)) = (rules.get(number), rules.side(number)) else {
            return Ok(true); // these are the rules that we began with
        };
        let entry = InForce { number, side, rule };
        let task = self.task.get_or_insert_with(|| Task {
            spots: sockets.spots(side, rule),
            port: rule.first.into(),
            failed: 0,
            last: None,
        });
        while let Some(port) = u16::try_from(task.port).ok().filter(|port| *port <= rule.last) {
            if *left == 0 {
                return Ok(false);
            }
            for spot in &task.spots {
                let spot = Rc::clone(spot);
                let place = Place { side, protocol: rule.protocol, port, spot };
                let cost = match sockets.claim(&mut self.round, place.clone(), number) {
                    Ok(opened) => {
                        if rule.weak {
                            self.tally.entry((side, rule.protocol)).or_default().0 += 1;
                        }
                        if opened { SOCKET } else { 1 }
                    }
                    Err(reason) => {
                        if rule.weak && is_starved(&reason) {
                            self.round.starved.push((place, number));
                        }
                        let refused = Refused::new(side, rule, port, reason);
                        if !rule.weak {
                            return Err(Failure::Port(refused));
                        }
                        task.failed += 1;
                        task.last = Some(refused);
                        SOCKET
                    }
                };
                *left = left.saturating_sub(cost);
            }
            task.port += 1;
        }
        self.conclude_rule(entry);
        Ok(true)
    }

    /// All ports of a rule have been tried.
    fn conclude_rule(&mut self, entry: InForce<'_>) {
        let Some(task) = self.task.take() else { return };
        let Some(refused) = task.last else { return };
        if !self.round.old_rules.contains(&entry.number) {
            self.round.warnings.push(refused.summary(task.failed));
        }
        let tally = self.tally.entry((entry.side, entry.rule.protocol)).or_default();
        tally.1 = Some(refused);
    }

    /// Why best effort was not enough: of one side and protocol, nothing could be had.
    fn nothing_at_all(&mut self) -> Option<Failure> {
        let tally = std::mem::take(&mut self.tally);
        let mut nothing = tally.into_values().filter(|(had, _)| *had == 0);
        nothing.find_map(|(_, last)| last).map(Failure::Port)
    }

    /// Nothing can fail any more.
    fn commit(&mut self, sockets: &mut Sockets, rules: &Rules) -> Relisten {
        // Those that follow services stay where they still may; new ones come with the next look.
        sockets.claim_services(&mut self.round, rules, 0);
        let gone = self.round.hand_over(sockets);
        let unwatched = if self.round.quiet { self.round.opened.clone() } else { Vec::new() };
        self.round.quiet = false;
        self.round.closed = gone.len();
        self.stage = Stage::Tidy { unwatched, gone };
        Relisten::Bound
    }

    fn tidy(
        round: &mut Round,
        sockets: &mut Sockets,
        unwatched: &mut Vec<u32>,
        gone: &mut Vec<u32>,
        mut left: usize,
    ) -> Relisten {
        if !each(unwatched, &mut left, WATCH, |id| sockets.watch_listener(id, true))
            || !each(gone, &mut left, SOCKET, |id| sockets.close_listener(id))
        {
            return Relisten::More;
        }
        if round.closed > 0 {
            round.waiting = None;
            let mut starved = std::mem::take(&mut round.starved);
            let done = each(&mut starved, &mut left, SOCKET, |(place, number)| {
                // It was complained of already.
                let _ = sockets.claim(round, place, number);
            });
            round.starved = starved;
            if !done {
                return Relisten::More;
            }
        }
        Relisten::Done(round.changes())
    }
}

/// Does something with each one, for what is `left` of the step; whether none remains.
fn each<T>(of: &mut Vec<T>, left: &mut usize, cost: usize, mut act: impl FnMut(T)) -> bool {
    while *left > 0 {
        let Some(one) = of.pop() else { return true };
        act(one);
        *left = left.saturating_sub(cost);
    }
    of.is_empty()
}

/// Refuses rules that would leave no descriptors for flows.
fn check_number(rules: &Rules, most: usize) -> Result<(), Failure> {
    let fixed = rules.iter().filter(|r| !r.rule.auto);
    let wanted = fixed.map(|r| usize::from(r.rule.last.saturating_sub(r.rule.first)) + 1).sum();
    if wanted > most { Err(Failure::TooMany { wanted, most }) } else { Ok(()) }
}
