//! From a table of system calls to a filter in the kernel.

use super::table::{self, Condition, Entry, Value};
use super::{Error, Role};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use std::collections::BTreeMap;

fn failed(error: impl std::fmt::Display) -> Error {
    Error::Filter(error.to_string())
}

/// Filters the system calls of all threads of this process. Returns `false`, with a warning, on a
/// machine whose numbers we do not know.
pub(super) fn install(role: Role) -> Result<bool, Error> {
    let Ok(arch) = TargetArch::try_from(std::env::consts::ARCH) else {
        log::warn!("System calls are not filtered on {}", std::env::consts::ARCH);
        return Ok(false);
    };
    let program = compile(role, arch, std::process::id())?;
    seccompiler::apply_filter_all_threads(&program).map_err(failed)?;
    Ok(true)
}

/// The filter for `role` in the process `own_pid`.
fn compile(role: Role, arch: TargetArch, own_pid: u32) -> Result<BpfProgram, Error> {
    let mut rules = BTreeMap::new();
    for entry in table::entries(role) {
        // No rule at all stands for "with any arguments".
        rules.insert(entry.call, rules_of(entry)?);
    }
    let (call, conditions) = table::own_abort(own_pid);
    rules.insert(call, rules_of_list(&conditions)?);
    let filter = SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, arch);
    filter.and_then(BpfProgram::try_from).map_err(failed)
}

fn rules_of(entry: &Entry) -> Result<Vec<SeccompRule>, Error> {
    let mut rules = Vec::new();
    for list in entry.when {
        rules.extend(rules_of_list(list)?);
    }
    Ok(rules)
}

/// A rule for each choice among what the arguments may be: the kernel's filter knows no "or".
fn rules_of_list(list: &[Condition]) -> Result<Vec<SeccompRule>, Error> {
    let mut chosen = vec![Vec::new()];
    for condition in list {
        let choices = choices(condition)?;
        let with = |before: &Vec<SeccompCondition>| {
            let before = before.clone();
            choices.iter().map(move |choice| [before.as_slice(), choice].concat())
        };
        chosen = chosen.iter().flat_map(with).collect();
    }
    chosen.into_iter().map(|conditions| SeccompRule::new(conditions).map_err(failed)).collect()
}

/// What `condition` allows, one by one: each is met when all its comparisons are.
fn choices(condition: &Condition) -> Result<Vec<Vec<SeccompCondition>>, Error> {
    use SeccompCmpOp::{Eq, Ge, Le, MaskedEq};
    let choices: Vec<Vec<(SeccompCmpOp, u32)>> = match condition.value {
        Value::One(value) => vec![vec![(Eq, value)]],
        Value::OneOf(values) => values.iter().map(|v| vec![(Eq, v.cast_unsigned())]).collect(),
        Value::Within(ranges) => ranges
            .iter()
            .map(|(first, last)| vec![(Ge, first.cast_unsigned()), (Le, last.cast_unsigned())])
            .collect(),
        Value::Masked(mask, value) => vec![vec![(MaskedEq(mask.into()), value)]],
    };
    // Every argument that we look at is an int or holds its flags in the lower half.
    let compare = |(op, value): (SeccompCmpOp, u32)| {
        SeccompCondition::new(condition.argument, SeccompCmpArgLen::Dword, op, value.into())
    };
    let compare_all = |choice: Vec<_>| choice.into_iter().map(compare).collect();
    choices.into_iter().map(compare_all).collect::<Result<_, _>>().map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const ROLES: [Role; 6] =
        [Role::VhostUser, Role::Stream, Role::Namespace, Role::Command, Role::Inside, Role::Client];

    #[test]
    fn the_filter_of_each_role_compiles_for_each_machine() {
        for arch in [TargetArch::x86_64, TargetArch::aarch64, TargetArch::riscv64] {
            for role in ROLES {
                let program = compile(role, arch, 1).expect("compiles");
                assert!(program.len() > 100 && program.len() < 4096, "{}", program.len());
            }
        }
    }

    #[test]
    fn no_system_call_stands_twice_in_the_table_of_a_role() {
        for role in ROLES {
            let mut seen = BTreeSet::from([table::own_abort(1).0]);
            for entry in table::entries(role) {
                assert!(seen.insert(entry.call), "{role:?}: {} stands twice", entry.call);
            }
        }
    }
}
