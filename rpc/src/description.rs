//! What is to be known of a service by those who do not have its trait.

use serde::{Deserialize, Serialize};

/// A service, for those who do not have its trait: what `DESCRIPTION` of a client says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ServiceDescription {
    /// As given to the attribute, or else the trait's.
    pub name: &'static str,
    /// In the order of the trait.
    pub methods: &'static [MethodDescription],
}

/// A method of a service, with Rust types as the trait writes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct MethodDescription {
    /// On the wire.
    pub name: &'static str,
    /// Names and types.
    pub arguments: &'static [(&'static str, &'static str)],
    /// How many of them each caller must give. The rest, at the end, are optional or have defaults.
    pub required: usize,
    /// The types of value and error; `None` for a notification.
    pub outcome: Option<(&'static str, &'static str)>,
    /// Whether it may run twice.
    pub is_idempotent: bool,
}

/// For the attribute's code, which writes it down in a constant.
pub const fn service_description(name: &'static str, methods: &'static [MethodDescription]) -> ServiceDescription {
    ServiceDescription { name, methods }
}

/// As [`service_description`].
pub const fn method_description(
    name: &'static str,
    arguments: &'static [(&'static str, &'static str)],
    required: usize,
    outcome: Option<(&'static str, &'static str)>,
    is_idempotent: bool,
) -> MethodDescription {
    MethodDescription { name, arguments, required, outcome, is_idempotent }
}

/// What a server serves, as it says itself: the answer to [`Client::describe`](crate::Client::describe).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Description {
    /// Services that have a trait.
    pub services: Vec<DescribedService>,
    /// Names of all methods, in order, those without a trait included.
    pub methods: Vec<String>,
}

/// As [`ServiceDescription`], of a service that is elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DescribedService {
    /// The service's.
    pub name: String,
    /// In the order of the trait.
    pub methods: Vec<DescribedMethod>,
}

/// As [`MethodDescription`], of a service that is elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DescribedMethod {
    /// On the wire.
    pub name: String,
    /// Names and types.
    pub arguments: Vec<(String, String)>,
    /// How many of them each caller must give.
    pub required: usize,
    /// The types of value and error; `None` for a notification.
    pub outcome: Option<(String, String)>,
    /// Whether it may run twice.
    pub is_idempotent: bool,
}

impl From<&ServiceDescription> for DescribedService {
    fn from(service: &ServiceDescription) -> Self {
        Self { name: service.name.to_owned(), methods: service.methods.iter().map(DescribedMethod::from).collect() }
    }
}

impl From<&MethodDescription> for DescribedMethod {
    fn from(method: &MethodDescription) -> Self {
        let pair = |(a, b): (&str, &str)| (a.to_owned(), b.to_owned());
        Self {
            name: method.name.to_owned(),
            arguments: method.arguments.iter().copied().map(pair).collect(),
            required: method.required,
            outcome: method.outcome.map(pair),
            is_idempotent: method.is_idempotent,
        }
    }
}
