//! The forwarding rules in force: two tables, one for each side on which somebody may knock, and a
//! number for each rule that stays its own while the tables are replaced around it.
//!
//! Pure values; who listens, and where, is not known here.

use super::{Protocol, Side};
use crate::config::ports::Rule;
use std::collections::{BTreeMap, HashMap};

/// What is to be forwarded: the rules of both sides, in the order in which they were asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// Ports of the host (`-t`, `-u`).
    pub outside: Vec<Rule>,
    /// Ports of the namespace (`-T`, `-U`).
    pub inside: Vec<Rule>,
}

impl Tables {
    /// The rules of one side.
    #[must_use]
    pub fn of(&self, side: Side) -> &[Rule] {
        match side {
            Side::Outside => &self.outside,
            Side::Inside => &self.inside,
        }
    }

    fn iter(&self) -> impl Iterator<Item = (Side, &Rule)> {
        Side::BOTH.into_iter().flat_map(|side| self.of(side).iter().map(move |rule| (side, rule)))
    }
}

/// A rule in force, and the side on which its ports are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InForce<'a> {
    /// Its number: never that of another rule.
    pub number: usize,
    /// Where its ports are.
    pub side: Side,
    /// The rule.
    pub rule: &'a Rule,
}

/// The rules in force. Those of the first tables are numbered in order, those outside first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    by_number: BTreeMap<usize, (Side, Rule)>,
    /// The numbers in the order of the tables, those outside first.
    order: Vec<usize>,
    next: usize,
}

impl Rules {
    /// The first rules.
    #[must_use]
    pub fn new(tables: Tables) -> Self {
        Self::default().followed_by(&tables)
    }

    /// The rules after these: those of `tables`, where each rule that both have keeps its number,
    /// and no number is given again.
    #[must_use]
    pub fn followed_by(&self, tables: &Tables) -> Self {
        let mut known: HashMap<(Side, &Rule), usize> =
            self.by_number.iter().map(|(number, (side, rule))| ((*side, rule), *number)).collect();
        let mut next = Self { next: self.next, ..Self::default() };
        for (side, rule) in tables.iter() {
            let number = known.remove(&(side, rule)).unwrap_or_else(|| {
                let number = next.next;
                next.next = number.wrapping_add(1); // 2^64 rules do not come
                number
            });
            next.order.push(number);
            next.by_number.insert(number, (side, rule.clone()));
        }
        next
    }

    /// The rule of this number, while it is in force.
    #[must_use]
    pub fn get(&self, number: usize) -> Option<&Rule> {
        self.by_number.get(&number).map(|(_, rule)| rule)
    }

    /// The side of the rule of this number.
    #[must_use]
    pub fn side(&self, number: usize) -> Option<Side> {
        self.by_number.get(&number).map(|(side, _)| *side)
    }

    /// All rules, in order.
    pub fn iter(&self) -> impl Iterator<Item = InForce<'_>> + Clone {
        self.order.iter().filter_map(|&number| {
            let (side, rule) = self.by_number.get(&number)?;
            Some(InForce { number, side: *side, rule })
        })
    }

    /// The rules as tables.
    #[must_use]
    pub fn tables(&self) -> Tables {
        let of = |side| {
            let rules = self.iter().filter(move |r| r.side == side);
            rules.map(|r| r.rule.clone()).collect()
        };
        Tables { outside: of(Side::Outside), inside: of(Side::Inside) }
    }

    /// Whether there are rules of this side and protocol that wait for services to appear.
    #[must_use]
    pub fn scans(&self, side: Side, protocol: Protocol) -> bool {
        self.iter().any(|r| r.rule.auto && r.side == side && r.rule.protocol == protocol)
    }
}

/// The first rules of a program that has one side only.
impl From<Vec<Rule>> for Rules {
    fn from(outside: Vec<Rule>) -> Self {
        Self::new(Tables { outside, inside: Vec::new() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(port: u16) -> Rule {
        Rule {
            listen: None,
            ifname: None,
            protocol: Protocol::Tcp,
            first: port,
            last: port,
            target: None,
            to: port,
            weak: false,
            auto: false,
        }
    }

    fn numbers(rules: &Rules) -> Vec<(usize, Side, u16)> {
        rules.iter().map(|r| (r.number, r.side, r.rule.first)).collect()
    }

    #[test]
    fn rules_keep_their_numbers_and_numbers_are_never_given_again() {
        use Side::{Inside, Outside};
        let first = Rules::new(Tables { outside: vec![rule(1), rule(2)], inside: vec![rule(1)] });
        assert_eq!(numbers(&first), [(0, Outside, 1), (1, Outside, 2), (2, Inside, 1)]);
        let tables = Tables { outside: vec![rule(3), rule(2)], inside: vec![rule(1), rule(4)] };
        let second = first.followed_by(&tables);
        assert_eq!(
            numbers(&second),
            [(3, Outside, 3), (1, Outside, 2), (2, Inside, 1), (4, Inside, 4)]
        );
        assert_eq!(second.tables(), tables);
        assert_eq!(second.get(0), None, "gone");
        assert_eq!(second.side(2), Some(Inside));
        let third = second.followed_by(&Tables::default());
        assert_eq!(numbers(&third), []);
        let fourth = third.followed_by(&Tables { outside: vec![rule(1)], ..Tables::default() });
        assert_eq!(numbers(&fourth), [(5, Outside, 1)], "not the number that it had once");
    }

    #[test]
    fn equal_rules_are_still_two_and_a_change_makes_another() {
        let twice = Tables { outside: vec![rule(1), rule(1)], ..Tables::default() };
        let rules = Rules::new(twice.clone());
        assert_eq!(rules.iter().map(|r| r.number).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(rules.followed_by(&twice).iter().count(), 2);
        let elsewhere = Rule { to: 9, ..rule(1) };
        let changed = rules.followed_by(&Tables { outside: vec![elsewhere], ..Tables::default() });
        assert_eq!(changed.iter().map(|r| r.number).collect::<Vec<_>>(), [2]);
    }
}
