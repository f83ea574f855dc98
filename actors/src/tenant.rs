//! Who is calling. Below the gate there is no raw tenant string, only this.

use memcube_schemas::TenantId;

/// An authenticated caller. Every call that reaches a memory carries one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantContext {
    tenant: TenantId,
    principal: String,
}

impl TenantContext {
    /// States that the caller has proved to speak for this tenant. Only the gate
    /// (`gateway/tenant.rs`) and whoever embeds memcube as a library may say so.
    #[must_use]
    pub fn authenticated(tenant: TenantId, principal: impl Into<String>) -> Self {
        Self { tenant, principal: principal.into() }
    }

    /// The tenant.
    #[must_use]
    pub const fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    /// The name under which changes of this caller are recorded.
    #[must_use]
    pub fn principal(&self) -> &str {
        &self.principal
    }
}
