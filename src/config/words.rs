//! Words: what documents call the choices there are, for whoever reads or prints them.

use crate::{
    policy::{Algorithm, Mtls, TlsMode, retry::Methods},
    resilience::{Mode, breaker::Scope},
};

/// What a rule does about what it finds.
pub const MODES: [(&str, Mode); 3] =
    [("enforce", Mode::Enforce), ("observe", Mode::Observe), ("off", Mode::Off)];

/// What to do about mesh TLS towards a service.
pub const TLS_MODES: [(&str, TlsMode); 3] =
    [("auto", TlsMode::Auto), ("strict", TlsMode::Strict), ("off", TlsMode::Off)];

/// Who may reach a port.
pub const MTLS_MODES: [(&str, Mtls); 2] =
    [("permissive", Mtls::Permissive), ("strict", Mtls::Strict)];

/// How an endpoint is picked.
pub const ALGORITHMS: [(&str, Algorithm); 5] = [
    ("LeastRequest", Algorithm::LeastRequest),
    ("PeakEwma", Algorithm::PeakEwma),
    ("RoundRobin", Algorithm::RoundRobin),
    ("Random", Algorithm::Random),
    ("ConsistentHash", Algorithm::ConsistentHash),
];

/// What one breaker is for.
pub const SCOPES: [(&str, Scope); 3] =
    [("Endpoint", Scope::Endpoint), ("Service", Scope::Service), ("Route", Scope::Route)];

/// Methods that may be sent again.
pub const METHODS: [(&str, Methods); 7] = [
    ("GET", Methods::GET),
    ("HEAD", Methods::HEAD),
    ("OPTIONS", Methods::OPTIONS),
    ("PUT", Methods::PUT),
    ("DELETE", Methods::DELETE),
    ("POST", Methods::POST),
    ("PATCH", Methods::PATCH),
];

/// The statuses of gRPC that are failures, each with its bit.
pub const GRPC_CODES: [(&str, u32); 16] = [
    ("CANCELLED", 1 << 1),
    ("UNKNOWN", 1 << 2),
    ("INVALID_ARGUMENT", 1 << 3),
    ("DEADLINE_EXCEEDED", 1 << 4),
    ("NOT_FOUND", 1 << 5),
    ("ALREADY_EXISTS", 1 << 6),
    ("PERMISSION_DENIED", 1 << 7),
    ("RESOURCE_EXHAUSTED", 1 << 8),
    ("FAILED_PRECONDITION", 1 << 9),
    ("ABORTED", 1 << 10),
    ("OUT_OF_RANGE", 1 << 11),
    ("UNIMPLEMENTED", 1 << 12),
    ("INTERNAL", 1 << 13),
    ("UNAVAILABLE", 1 << 14),
    ("DATA_LOSS", 1 << 15),
    ("UNAUTHENTICATED", 1 << 16),
];

/// What `value` is called.
pub fn word<T: PartialEq>(words: &[(&'static str, T)], value: &T) -> &'static str {
    words.iter().find(|(_, it)| it == value).map_or("?", |(word, _)| word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_choice_of_a_kind_has_its_own_word() {
        for mode in [Mode::Enforce, Mode::Observe, Mode::Off] {
            assert_ne!(word(&MODES, &mode), "?");
        }
        let all = METHODS.iter().fold(Methods(0), |all, (_, it)| all.and(*it));
        assert_eq!(all.0.count_ones(), 7);
        let all = GRPC_CODES.iter().fold(0, |all, (_, bit)| all | bit);
        assert_eq!(all, (1 << 17) - 2, "each status but OK");
    }
}
