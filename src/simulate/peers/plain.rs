//! Plain: each endpoint in turn, whatever becomes of the request; what kube-proxy does.

/// A caller without rules.
#[derive(Debug)]
pub(in super::super) struct Plain {
    endpoints: u32,
    turn: u32,
}

impl Plain {
    /// A caller of so many endpoints.
    pub(in super::super) fn new(endpoints: u32) -> Self {
        Self { endpoints, turn: 0 }
    }

    /// The next one.
    pub(in super::super) fn pick(&mut self) -> (u32, u64) {
        self.turn = (self.turn + 1) % self.endpoints;
        (self.turn, 0)
    }
}
