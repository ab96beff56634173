//! The bank: an all-to-all workload whose restored states prove, or disprove, that a global snapshot was consistent.
//!
//! Every member sends numbered transfers to every other over TCP (one connection for each direction) and, apart from that,
//! numbered UDP datagrams. Both ends of a channel keep numbers, digests of the contents, and for TCP the amounts; the
//! amounts that all members hold and those in flight always add up to what they began with. A member's [`book`] is one
//! value behind one lock: a transfer is in it entirely or not at all.
//!
//! **Why a wrong cut betrays itself.** Suppose B's local snapshot contains a transfer that A sent after its own cut. When
//! both are restored, A knows nothing of that transfer and sends *another* one under the same number: contents depend on
//! the nanosecond at which the member's earlier transfers were made ([`book::Book::send`]). So B holds a digest that A's
//! book does not have under that number, however much later the books are compared. Nothing need be frozen in the
//! instant of the restore, and what still lay unread in B's socket buffers counts as well.
//!
//! TCP hides much (it drops what it takes for a repetition, and sends again what was lost), which is why UDP is there: a
//! datagram that was received is a witness of the raw network.
//!
//! | module | what is in it |
//! |---|---|
//! | [`record`] | a transfer as bytes, and digests |
//! | [`book`] | what a member knows, and its state as read out |
//! | [`member`] | the running program: sockets and threads around a book |
//! | [`control`] | asking a member to freeze, to go on, or for its state |
//! | [`check`] | the offline proof |

pub mod book;
pub mod check;
pub mod control;
pub mod member;
pub mod record;
