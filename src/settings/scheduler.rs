//! `[scheduler]`: how much is prepared for the next turns of conversations.

use std::path::PathBuf;

use memcube_actors::scheduler::SchedulerRules;
use serde::{Deserialize, Serialize};

/// Tokens of memories that one preload may add to a context, at the most.
const TOKENS_MAX: usize = 1 << 20;

/// `[scheduler]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct SchedulerSettings {
    /// Whether next turns are prepared at all.
    pub enabled: bool,
    /// Tokens of memories that one preload adds to a context.
    pub tokens_max: usize,
    /// Bytes of keys and values that they may take.
    pub bytes_max: u64,
    /// Tokens that are computed ahead for one tenant in a minute; 0 for any number.
    pub tenant_tokens_per_minute: u64,
    /// What a token that is computed in vain costs against one that somebody would have waited for,
    /// from 0 to 1: little where the machine is idle anyway, 1 where somebody pays for each.
    pub waste: f64,
    /// A file to which every decision is appended as a JSON line, for `memcube replay`. It holds
    /// identifiers and numbers, no text.
    pub decision_log: Option<PathBuf>,
}

impl Default for SchedulerSettings {
    fn default() -> Self {
        let SchedulerRules { tokens_max, bytes_max, tenant_tokens_per_minute, waste } =
            SchedulerRules::default();
        Self {
            enabled: true,
            tokens_max,
            bytes_max,
            tenant_tokens_per_minute,
            waste,
            decision_log: None,
        }
    }
}

impl SchedulerSettings {
    /// As the scheduler is given them.
    #[must_use]
    pub const fn rules(&self) -> SchedulerRules {
        SchedulerRules {
            tokens_max: self.tokens_max,
            bytes_max: self.bytes_max,
            tenant_tokens_per_minute: self.tenant_tokens_per_minute,
            waste: self.waste,
        }
    }

    /// What is wrong with single values.
    pub(super) fn mistakes_in_values(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        if self.tokens_max == 0 || self.tokens_max > TOKENS_MAX {
            mistakes.push(format!("`scheduler.tokens-max` must be between 1 and {TOKENS_MAX}"));
        }
        if !(0.0..=1.0).contains(&self.waste) {
            mistakes.push("`scheduler.waste` must be between 0 and 1".to_owned());
        }
        mistakes
    }
}
