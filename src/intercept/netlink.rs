//! Netlink: requests to the kernel's network configuration, each answered or an error.
//!
//! An encoder and a socket, no more than the rules and one address need: a few hundred
//! lines that anybody can check, instead of a dependency in what runs with
//! `CAP_NET_ADMIN`. Every request has a bound on its size and on the time the kernel may
//! take to answer.
//!
//! # Sources
//!
//! - RFC 3549, §2.2: the message header; `netlink(7)`, `include/net/netlink.h`: attributes.

use std::{
    ops::Range,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto,
            setsockopt, socket, sockopt,
        },
        time::{TimeVal, TimeValLike},
    },
};

/// `NLM_F_ACK`: answer even when all went well.
const ACK: u16 = 0x4;
/// `NLM_F_REQUEST`.
const REQUEST: u16 = 0x1;
/// `NLM_F_CREATE`: make what is not there.
pub const CREATE: u16 = 0x400;
/// `NLM_F_EXCL`: it is an error if it is there.
pub const EXCLUSIVE: u16 = 0x200;
/// `NLM_F_REPLACE`: change it if it is there.
pub const REPLACE: u16 = 0x100;
/// `NLM_F_APPEND`: put it after those that are there.
pub const APPEND: u16 = 0x800;
/// `NLM_F_DUMP`: tell all there are.
pub const DUMP: u16 = 0x300;
/// `NLM_F_DUMP_INTR`: something changed while a dump was going on.
const DUMP_INTERRUPTED: u16 = 0x10;
/// `NLMSG_ERROR`: an error, or the absence of one.
const KIND_ERROR: u16 = 2;
/// `NLMSG_DONE`: the end of a dump.
const KIND_DONE: u16 = 3;
/// `NLA_TYPE_MASK`: the rest are hints about the content.
const ATTRIBUTE_KIND: u16 = 0x3fff;
/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;

/// Bytes of a message header, and of an attribute header.
const HEADER: usize = 16;
const ATTRIBUTE_HEADER: usize = 4;

/// The largest datagram the kernel sends: it packs dumps into at most 32 KiB.
const RECEIVE_BYTES: usize = 64 * 1024;

/// How long the kernel may take. It answers within the system call that asks; only
/// loading a module takes any time.
const ANSWER_SECONDS: i64 = 10;

/// Why a request came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot {step}: {}{}", .errno.desc(), hint(*.errno))]
pub struct Error {
    /// What was to be done.
    pub step: &'static str,
    /// What the kernel said.
    pub errno: Errno,
}

fn hint(errno: Errno) -> &'static str {
    #[expect(clippy::wildcard_enum_match_arm, reason = "all other errors speak for themselves")]
    match errno {
        Errno::EPERM | Errno::EACCES => {
            "\nhint: run it with CAP_NET_ADMIN in the pod's network namespace"
        }
        Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT | Errno::ENOENT | Errno::EINVAL => {
            "\nhint: the kernel must have nf_tables with NAT for the family `inet` (Linux 5.2 or \
             later; modules nf_tables, nft_chain_nat, nft_redir)"
        }
        Errno::EAGAIN => "\nhint: the kernel did not answer; try again",
        Errno::EMSGSIZE => "\nhint: leave out fewer ports and addresses, or wider ranges",
        _ => "",
    }
}

/// A part of the kernel that is configured over netlink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subsystem {
    /// Interfaces, addresses and routes.
    Route,
    /// Packet rules.
    Netfilter,
}

/// Messages that are sent as one.
#[derive(Debug, Default)]
pub struct Request {
    bytes: Vec<u8>,
    messages: Vec<Sent>,
    /// A length did not fit its field; sending is refused.
    too_large: bool,
}

#[derive(Debug)]
struct Sent {
    step: &'static str,
    awaits_answer: bool,
}

/// What one message says: its kind, `NLM_F_*` flags, and the fixed header of its family.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// What the message does, for the error if it fails: "cannot {step}".
    pub step: &'static str,
    /// The message type.
    pub kind: u16,
    /// Flags besides `NLM_F_REQUEST`.
    pub flags: u16,
    /// The header between the netlink header and the attributes.
    pub family_header: &'a [u8],
}

/// Writes the attributes of one message.
#[derive(Debug)]
pub struct Attributes<'a> {
    request: &'a mut Request,
}

impl Request {
    /// Adds a message the kernel has to answer.
    pub fn message(&mut self, head: Head<'_>, body: impl FnOnce(&mut Attributes<'_>)) {
        self.append(Head { flags: head.flags | ACK, ..head }, body);
    }

    /// Adds a message that is answered only when it fails, or by a dump.
    pub fn unanswered(&mut self, head: Head<'_>, body: impl FnOnce(&mut Attributes<'_>)) {
        self.append(head, body);
    }

    fn append(&mut self, head: Head<'_>, body: impl FnOnce(&mut Attributes<'_>)) {
        let start = self.bytes.len();
        let awaits_answer = head.flags & ACK != 0;
        self.messages.push(Sent { step: head.step, awaits_answer });
        // Messages count from 1, and answers name the number.
        let sequence = u32::try_from(self.messages.len()).unwrap_or(u32::MAX);
        self.bytes.extend([0; 4]);
        self.bytes.extend(head.kind.to_ne_bytes());
        self.bytes.extend((head.flags | REQUEST).to_ne_bytes());
        self.bytes.extend(sequence.to_ne_bytes());
        self.bytes.extend([0; 4]);
        self.bytes.extend(head.family_header);
        self.pad();
        body(&mut Attributes { request: self });
        match u32::try_from(self.bytes.len() - start) {
            Ok(length) => self.patch(start..start + 4, &length.to_ne_bytes()),
            Err(_) => self.too_large = true,
        }
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn patch(&mut self, at: Range<usize>, value: &[u8]) {
        if let Some(field) = self.bytes.get_mut(at) {
            field.copy_from_slice(value);
        }
    }
}

impl Attributes<'_> {
    /// An attribute of raw `value`.
    pub fn bytes(&mut self, kind: u16, value: &[u8]) {
        self.attribute(kind, |it| it.request.bytes.extend(value));
    }

    /// A number in network byte order, as netfilter has them.
    pub fn big_endian(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// A number in the byte order of the host, as routing has them.
    pub fn native(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_ne_bytes());
    }

    /// A string, with the zero the kernel expects at its end.
    pub fn string(&mut self, kind: u16, value: &str) {
        self.attribute(kind, |it| {
            it.request.bytes.extend(value.as_bytes());
            it.request.bytes.push(0);
        });
    }

    /// Attributes within an attribute.
    pub fn nested(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        self.attribute(kind | NESTED, body);
    }

    /// Attributes within an attribute, after a fixed header.
    pub fn nested_after(&mut self, kind: u16, header: &[u8], body: impl FnOnce(&mut Self)) {
        self.attribute(kind | NESTED, |it| {
            it.request.bytes.extend(header);
            it.request.pad();
            body(it);
        });
    }

    fn attribute(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        let start = self.request.bytes.len();
        self.request.bytes.extend([0; 2]);
        self.request.bytes.extend(kind.to_ne_bytes());
        body(self);
        match u16::try_from(self.request.bytes.len() - start) {
            Ok(length) => self.request.patch(start..start + 2, &length.to_ne_bytes()),
            Err(_) => self.request.too_large = true,
        }
        self.request.pad();
    }
}

/// One message the kernel sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply<'a> {
    /// Its type.
    pub kind: u16,
    flags: u16,
    sequence: u32,
    /// What follows the netlink header.
    pub payload: &'a [u8],
}

/// The messages in `datagram`; ends at the first that is cut short.
fn replies(mut datagram: &[u8]) -> impl Iterator<Item = Reply<'_>> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32_at(datagram, 0)?).ok()?;
        let payload = datagram.get(HEADER..length)?;
        let (kind, flags) = (u16_at(datagram, 4)?, u16_at(datagram, 6)?);
        let sequence = u32_at(datagram, 8)?;
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Reply { kind, flags, sequence, payload })
    })
}

/// The attributes in `bytes`, as kind and value; ends at the first that is cut short.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & ATTRIBUTE_KIND;
        let value = bytes.get(ATTRIBUTE_HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// A socket to one subsystem, of the network namespace it was opened in.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
}

impl Socket {
    /// Opens a socket in the network namespace of the calling thread.
    ///
    /// # Errors
    ///
    /// The kernel does not have `subsystem`.
    pub fn open(subsystem: Subsystem) -> Result<Self, Error> {
        let protocol = match subsystem {
            Subsystem::Route => SockProtocol::NetlinkRoute,
            Subsystem::Netfilter => SockProtocol::NetlinkNetFilter,
        };
        let failed = |errno| Error { step: "open a netlink socket", errno };
        let (family, flags) = (AddressFamily::Netlink, SockFlag::SOCK_CLOEXEC);
        let fd = socket(family, SockType::Raw, flags, protocol).map_err(failed)?;
        let limit = TimeVal::seconds(ANSWER_SECONDS);
        setsockopt(&fd, sockopt::ReceiveTimeout, &limit).map_err(failed)?;
        Ok(Self { fd })
    }

    /// Sends `request` and waits until each of its messages that wants an answer has one.
    ///
    /// # Errors
    ///
    /// The first message that was refused; in a netfilter batch nothing is changed then.
    pub fn transact(&self, request: &Request) -> Result<(), Error> {
        self.send(request)?;
        let mut unanswered = request.messages.iter().filter(|it| it.awaits_answer).count();
        let mut buffer = vec![0; RECEIVE_BYTES];
        while unanswered != 0 {
            for reply in replies(self.receive(request, &mut buffer)?) {
                if reply.kind == KIND_ERROR {
                    check(request, &reply)?;
                    unanswered = unanswered.saturating_sub(1);
                }
            }
        }
        Ok(())
    }

    /// Sends a `request` of one dump, and calls `each` for each message of the answer.
    ///
    /// # Errors
    ///
    /// The dump was refused, or something changed meanwhile.
    pub fn dump(&self, request: &Request, each: &mut dyn FnMut(Reply<'_>)) -> Result<(), Error> {
        self.send(request)?;
        let mut buffer = vec![0; RECEIVE_BYTES];
        loop {
            for reply in replies(self.receive(request, &mut buffer)?) {
                if reply.flags & DUMP_INTERRUPTED != 0 {
                    return Err(Error { step: step(request, &reply), errno: Errno::EINTR });
                }
                match reply.kind {
                    KIND_ERROR => check(request, &reply)?,
                    KIND_DONE => return check(request, &reply),
                    _ => each(reply),
                }
            }
        }
    }

    fn send(&self, request: &Request) -> Result<(), Error> {
        let step = request.messages.first().map_or("send nothing", |it| it.step);
        if request.too_large {
            return Err(Error { step, errno: Errno::EMSGSIZE });
        }
        let (fd, kernel) = (self.fd.as_raw_fd(), NetlinkAddr::new(0, 0));
        let sent = sendto(fd, &request.bytes, &kernel, MsgFlags::empty());
        sent.map(drop).map_err(|errno| Error { step, errno })
    }

    fn receive<'a>(&self, request: &Request, buffer: &'a mut [u8]) -> Result<&'a [u8], Error> {
        let step = request.messages.first().map_or("receive", |it| it.step);
        // With MSG_TRUNC the length is the real one, so that a cut is seen.
        let length = recv(self.fd.as_raw_fd(), buffer, MsgFlags::MSG_TRUNC)
            .map_err(|errno| Error { step, errno })?;
        buffer.get(..length).ok_or(Error { step, errno: Errno::ENOBUFS })
    }
}

/// What message of `request` the `reply` is about.
fn step(request: &Request, reply: &Reply<'_>) -> &'static str {
    let index = usize::try_from(reply.sequence).ok().and_then(|it| it.checked_sub(1));
    index.and_then(|it| request.messages.get(it)).map_or("make a request", |it| it.step)
}

/// An answer of zero is none; a negative one is an error number.
fn check(request: &Request, reply: &Reply<'_>) -> Result<(), Error> {
    let code = u32_at(reply.payload, 0).unwrap_or(0).cast_signed();
    if code == 0 {
        return Ok(());
    }
    Err(Error { step: step(request, reply), errno: Errno::from_raw(code.saturating_neg()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_count_the_value_and_not_its_padding() {
        let mut request = Request::default();
        let head = Head { step: "test", kind: 7, flags: CREATE, family_header: &[1, 0, 0, 0] };
        request.message(head, |it| {
            it.string(1, "abcd");
            it.nested(2, |it| it.big_endian(3, 5));
        });
        #[rustfmt::skip]
        let expected = [
            44, 0, 0, 0, 7, 0, 0x05, 0x04, 1, 0, 0, 0, 0, 0, 0, 0,
            1, 0, 0, 0,
            9, 0, 1, 0, b'a', b'b', b'c', b'd', 0, 0, 0, 0,
            12, 0, 2, 0x80, 8, 0, 3, 0, 0, 0, 0, 5,
        ];
        if cfg!(target_endian = "little") {
            assert_eq!(request.bytes, expected);
        }
    }

    #[test]
    fn what_was_written_is_read_back() {
        let mut request = Request::default();
        for kind in [20, 21] {
            let head = Head { step: "test", kind, flags: 0, family_header: &[] };
            request.message(head, |it| it.nested(9, |it| it.string(1, "x")));
        }
        let read: Vec<_> = replies(&request.bytes).collect();
        assert_eq!(
            read.iter().map(|it| (it.kind, it.sequence)).collect::<Vec<_>>(),
            [(20, 1), (21, 2)]
        );
        let (kind, inner) = attributes(read[0].payload).next().unwrap();
        assert_eq!((kind, attributes(inner).collect::<Vec<_>>()), (9, vec![(1, &b"x\0"[..])]));
    }

    #[test]
    fn a_message_cut_short_is_no_message() {
        let mut request = Request::default();
        let head = Head { step: "test", kind: 20, flags: 0, family_header: &[] };
        request.message(head, |it| it.string(1, "x"));
        for length in 0..request.bytes.len() {
            assert_eq!(replies(&request.bytes[..length]).count(), 0);
        }
        assert_eq!(attributes(&[3, 0, 1, 0, 0, 0, 0, 0]).count(), 0);
        assert_eq!(attributes(&[9, 0, 1, 0, 0, 0, 0, 0]).count(), 0);
    }

    #[test]
    fn an_attribute_that_cannot_be_written_is_not_sent() {
        let mut request = Request::default();
        let head = Head { step: "say it", kind: 20, flags: 0, family_header: &[] };
        request.message(head, |it| it.bytes(1, &vec![0; 70_000]));
        let Ok(socket) = Socket::open(Subsystem::Route) else { return };
        assert_eq!(
            socket.transact(&request),
            Err(Error { step: "say it", errno: Errno::EMSGSIZE })
        );
    }

    #[test]
    fn an_error_says_what_failed_and_what_to_do() {
        let error = Error { step: "create the table `remora`", errno: Errno::EPERM };
        assert_eq!(
            error.to_string(),
            "cannot create the table `remora`: Operation not permitted\n\
             hint: run it with CAP_NET_ADMIN in the pod's network namespace"
        );
    }
}
