//! Kernel rules: installed whole or not at all, any number of times.
//!
//! A transaction creates the table, deletes it and creates it again with its content:
//! the first step makes the second one possible whether or not the table was there, and
//! between two packets there is either the old table or the new one. Tables of others
//! are never touched.
//!
//! # Sources
//!
//! - Linux `include/uapi/linux/netfilter/nf_tables.h`, and `nft --debug=netlink`, which
//!   shows the expressions a rule is made of.

use super::{
    netlink::{self, APPEND, Attributes, CREATE, DUMP, Head, Request, Socket, Subsystem},
    rules::{Chain, Ruleset, Set, SetKind},
};

mod expression;

/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u16 = 10;
/// `NFPROTO_INET`: a table of IPv4 and IPv6.
const INET: u8 = 1;
/// `NFNL_MSG_BATCH_BEGIN` and `_END`: the bounds of a transaction.
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

/// `NFT_MSG_*`, in its subsystem.
const NEW_TABLE: u16 = SUBSYSTEM << 8;
const DELETE_TABLE: u16 = (SUBSYSTEM << 8) + 2;
const NEW_CHAIN: u16 = (SUBSYSTEM << 8) + 3;
const GET_CHAIN: u16 = (SUBSYSTEM << 8) + 4;
const NEW_RULE: u16 = (SUBSYSTEM << 8) + 6;
const GET_RULE: u16 = (SUBSYSTEM << 8) + 7;
const NEW_SET: u16 = (SUBSYSTEM << 8) + 9;
const NEW_ELEMENTS: u16 = (SUBSYSTEM << 8) + 12;

/// `NFTA_LIST_ELEM`: one of many.
const LIST_ELEMENT: u16 = 1;
/// `NFTA_DATA_VALUE`: bytes to compare or to look up.
const DATA_VALUE: u16 = 1;

/// `NFTA_TABLE_NAME`; the same number names the table in all other messages.
const TABLE: u16 = 1;
/// `NFTA_CHAIN_*`.
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
/// `NFTA_HOOK_*`.
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
/// `NF_ACCEPT`.
const ACCEPT: u32 = 1;
/// `NFTA_RULE_*`.
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const RULE_USERDATA: u16 = 7;
/// `NFTNL_UDATA_RULE_COMMENT`: `nft` shows it.
const COMMENT: u8 = 0;
/// `NFTA_SET_*`.
const SET_NAME: u16 = 2;
const SET_FLAGS: u16 = 3;
const SET_KEY_TYPE: u16 = 4;
const SET_KEY_BYTES: u16 = 5;
const SET_ID: u16 = 10;
/// `NFT_SET_INTERVAL`.
const INTERVAL: u32 = 4;
/// `NFTA_SET_ELEM_LIST_*`.
const ELEMENTS_SET: u16 = 2;
const ELEMENTS: u16 = 3;
/// `NFTA_SET_ELEM_*`.
const ELEMENT_KEY: u16 = 1;
const ELEMENT_FLAGS: u16 = 3;
/// `NFT_SET_ELEM_INTERVAL_END`: the first value that is no longer in.
const INTERVAL_END: u32 = 1;

/// How the rules in the kernel differ from those expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Difference {
    /// None of them is there.
    #[error("there is no table `{0}`")]
    NoTable(&'static str),
    /// They were made by another configuration or version.
    #[error("the table has no chain `{0}`, so it holds rules of another configuration")]
    Generation(String),
    /// Somebody changed them.
    #[error("chain `{chain}` has {found} rules instead of {expected}")]
    Rules {
        /// The chain.
        chain: &'static str,
        /// Rules it should have.
        expected: usize,
        /// Rules it has.
        found: usize,
    },
}

/// Installs `rules` in the network namespace of the calling thread, in place of an
/// earlier table of the same name.
///
/// # Errors
///
/// The kernel refused, and nothing has changed.
pub fn install(rules: &Ruleset) -> Result<(), netlink::Error> {
    transact(|batch| {
        table(batch, "create the table", NEW_TABLE, rules.table);
        table(batch, "replace the table", DELETE_TABLE, rules.table);
        table(batch, "create the table", NEW_TABLE, rules.table);
        let marker = rules.generation();
        message(batch, "create the marker chain", NEW_CHAIN, |it| {
            it.string(TABLE, rules.table);
            it.string(CHAIN_NAME, &marker);
        });
        for (id, it) in (1..).zip(&rules.sets) {
            set(batch, rules.table, id, it);
        }
        for it in &rules.chains {
            chain(batch, rules.table, it);
        }
    })
}

/// Removes `table` from the network namespace of the calling thread, if it is there.
///
/// # Errors
///
/// The kernel refused.
pub fn remove(name: &str) -> Result<(), netlink::Error> {
    transact(|batch| {
        table(batch, "find the table", NEW_TABLE, name);
        table(batch, "delete the table", DELETE_TABLE, name);
    })
}

/// Compares the kernel's rules with `rules`, by their generation and their number.
///
/// # Errors
///
/// The kernel would not tell, which takes the same capability as changing them.
pub fn verify(rules: &Ruleset) -> Result<Result<(), Difference>, netlink::Error> {
    let marker = rules.generation();
    let (mut any, mut marked) = (false, false);
    dump("list the chains", GET_CHAIN, rules.table, &mut |name, attributes| {
        if name == CHAIN_NAME {
            any = true;
            marked |= text(attributes) == marker.as_bytes();
        }
    })?;
    if !any {
        return Ok(Err(Difference::NoTable(rules.table)));
    }
    if !marked {
        return Ok(Err(Difference::Generation(marker)));
    }
    let mut found = vec![0; rules.chains.len()];
    dump("list the rules", GET_RULE, rules.table, &mut |name, attributes| {
        let of = |it: &Chain| name == RULE_CHAIN && text(attributes) == it.name.as_bytes();
        if let Some(count) = rules.chains.iter().position(of).and_then(|index| found.get_mut(index))
        {
            *count += 1;
        }
    })?;
    let wrong = rules.chains.iter().zip(found).find(|(it, found)| it.rules.len() != *found);
    Ok(wrong.map_or(Ok(()), |(it, found)| {
        Err(Difference::Rules { chain: it.name, expected: it.rules.len(), found })
    }))
}

/// Sends the messages `fill` adds as one transaction.
fn transact(fill: impl FnOnce(&mut Request)) -> Result<(), netlink::Error> {
    let bound =
        |kind, family_header| Head { step: "change packet rules", kind, flags: 0, family_header };
    // `struct nfgenmsg`: family, version, and the subsystem the batch is for.
    let [high, low] = SUBSYSTEM.to_be_bytes();
    let header = [0, 0, high, low];
    let mut batch = Request::default();
    batch.unanswered(bound(BATCH_BEGIN, &header), |_| ());
    fill(&mut batch);
    batch.unanswered(bound(BATCH_END, &header), |_| ());
    Socket::open(Subsystem::Netfilter)?.transact(&batch)
}

/// Calls `each` for every attribute of everything in `table`.
fn dump(
    step: &'static str,
    kind: u16,
    table: &str,
    each: &mut dyn FnMut(u16, &[u8]),
) -> Result<(), netlink::Error> {
    let mut request = Request::default();
    let head = Head { step, kind, flags: DUMP, family_header: &[INET, 0, 0, 0] };
    request.unanswered(head, |it| it.string(TABLE, table));
    Socket::open(Subsystem::Netfilter)?.dump(&request, &mut |reply| {
        // Not every kernel filters by table.
        let attributes = || netlink::attributes(reply.payload.get(4..).unwrap_or_default());
        if attributes().any(|(name, value)| name == TABLE && text(value) == table.as_bytes()) {
            attributes().for_each(|(name, value)| each(name, value));
        }
    })
}

fn text(value: &[u8]) -> &[u8] {
    value.strip_suffix(&[0]).unwrap_or(value)
}

fn message(
    batch: &mut Request,
    step: &'static str,
    kind: u16,
    body: impl FnOnce(&mut Attributes<'_>),
) {
    let flags = match kind {
        NEW_RULE => CREATE | APPEND,
        DELETE_TABLE => 0,
        _ => CREATE,
    };
    batch.message(Head { step, kind, flags, family_header: &[INET, 0, 0, 0] }, body);
}

fn table(batch: &mut Request, step: &'static str, kind: u16, name: &str) {
    message(batch, step, kind, |it| it.string(TABLE, name));
}

fn set(batch: &mut Request, table: &str, id: u32, set: &Set) {
    // The type is for `nft`, which shows elements by it; the kernel needs their length.
    let (key_type, key_bytes) = match set.kind {
        SetKind::Ipv4 => (7, 4),
        SetKind::Ipv6 => (8, 16),
        SetKind::Port => (13, 2),
    };
    message(batch, "create a set", NEW_SET, |it| {
        it.string(TABLE, table);
        it.string(SET_NAME, set.name);
        it.big_endian(SET_FLAGS, INTERVAL);
        it.big_endian(SET_KEY_TYPE, key_type);
        it.big_endian(SET_KEY_BYTES, key_bytes);
        it.big_endian(SET_ID, id);
    });
    message(batch, "fill a set", NEW_ELEMENTS, |it| {
        it.string(TABLE, table);
        it.string(ELEMENTS_SET, set.name);
        it.nested(ELEMENTS, |it| {
            for interval in &set.intervals {
                element(it, set.kind, *interval.start(), 0);
                // An interval up to the last value of all has no end.
                let end = interval.end().checked_add(1).filter(|it| *it <= greatest(set.kind));
                if let Some(end) = end {
                    element(it, set.kind, end, INTERVAL_END);
                }
            }
        });
    });
}

fn element(list: &mut Attributes<'_>, kind: SetKind, key: u128, flags: u32) {
    let bytes = key.to_be_bytes();
    let unused = match kind {
        SetKind::Port => 14,
        SetKind::Ipv4 => 12,
        SetKind::Ipv6 => 0,
    };
    let key = bytes.get(unused..).unwrap_or_default();
    list.nested(LIST_ELEMENT, |it| {
        it.nested(ELEMENT_KEY, |it| it.bytes(DATA_VALUE, key));
        if flags != 0 {
            it.big_endian(ELEMENT_FLAGS, flags);
        }
    });
}

fn greatest(kind: SetKind) -> u128 {
    match kind {
        SetKind::Port => u16::MAX.into(),
        SetKind::Ipv4 => u32::MAX.into(),
        SetKind::Ipv6 => u128::MAX,
    }
}

fn chain(batch: &mut Request, table: &str, chain: &Chain) {
    message(batch, "create a NAT chain", NEW_CHAIN, |it| {
        it.string(TABLE, table);
        it.string(CHAIN_NAME, chain.name);
        it.nested(CHAIN_HOOK, |it| {
            it.big_endian(HOOK_NUMBER, expression::hook(chain.hook));
            it.big_endian(HOOK_PRIORITY, chain.priority.cast_unsigned());
        });
        it.big_endian(CHAIN_POLICY, ACCEPT);
        it.string(CHAIN_TYPE, "nat");
    });
    for rule in &chain.rules {
        message(batch, "add a rule", NEW_RULE, |it| {
            it.string(TABLE, table);
            it.string(RULE_CHAIN, chain.name);
            it.nested(RULE_EXPRESSIONS, |it| expression::write(it, rule));
            it.bytes(RULE_USERDATA, &comment(rule.comment));
        });
    }
}

/// A comment as `nft` stores it: kind, length, text, zero.
fn comment(text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len() + 1).unwrap_or(u8::MAX);
    let kept = usize::from(length).saturating_sub(1);
    let mut bytes = vec![COMMENT, length];
    bytes.extend(text.bytes().take(kept));
    bytes.push(0);
    bytes
}
