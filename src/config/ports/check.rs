//! Whole tables of rules that come from elsewhere (`pesto`), held to what the command line is held
//! to.

use super::{Context, Error, LOOPBACK, MAX_RULES, Reason, Rule, check_target, listening_address};

/// The rules of a table as they may be used in `context`.
///
/// # Errors
/// The first rule that the command line could not have asked for, or two that want the same ports
/// in the same place.
pub fn check(mut rules: Vec<Rule>, context: &Context) -> Result<Vec<Rule>, Error> {
    if rules.len() > MAX_RULES {
        return Err(Error::TooManyRules);
    }
    for rule in &mut rules {
        rule.listen = listening_address(rule.listen, context)?;
        if let Err(reason) = check_one(rule, context) {
            return Err(Error::Rule(Box::new(rule.clone()), reason));
        }
        if rule.auto && !context.auto_allowed {
            return Err(Error::AutoNotAllowed);
        }
    }
    match conflict(&rules) {
        Some((new, old)) => Err(Error::Conflict(Box::new((new.clone(), old.clone())))),
        None => Ok(rules),
    }
}

fn check_one(rule: &Rule, context: &Context) -> Result<(), Reason> {
    let more = rule.last.checked_sub(rule.first).ok_or(Reason::Range)?;
    if rule.first == 0 || rule.to == 0 || rule.to.checked_add(more).is_none() {
        return Err(Reason::Range);
    }
    if !context.listen_allowed && rule.ifname.as_deref().is_some_and(|name| name != LOOPBACK) {
        return Err(Reason::ListenNotAllowed);
    }
    check_target(rule.listen, rule.target)
}

/// Two rules with the same ports in the same place. Rules may be many, so they are sorted: pairs
/// would be too many to look at while a guest waits.
fn conflict(rules: &[Rule]) -> Option<(&Rule, &Rule)> {
    let mut sorted: Vec<_> = rules.iter().collect();
    sorted.sort_unstable_by(|a, b| {
        (a.protocol, a.listen, &a.ifname, a.first).cmp(&(b.protocol, b.listen, &b.ifname, b.first))
    });
    let pairs = sorted.iter().zip(sorted.iter().skip(1));
    let found = pairs.map(|(a, b)| (*a, *b)).find(|(a, b)| a.same_place(b) && a.last >= b.first);
    found.map(|(a, b)| (b, a))
}
