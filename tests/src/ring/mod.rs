//! The ring benchmark (RCPBT): a numbered token, one node after the other, a result that cannot be right by luck.
//!
//! ```text
//! node                      manager                         neighbours
//!  Register {name, port} ->
//!                        <- Assign {position, successor..}   (all N registered; ring order = order of the names)
//!                                                            connect to the successor, accept the predecessor
//!  Ready                 ->
//!                        <- Start                            (all N ready)
//!                                                            node 0 sends token 1; every node: n in, n+1 out
//!                                                            token T: its receiver sends Exit round the ring once
//!  Done {statistics}     ->
//! ```
//! A token carries its number and the state of a chaotic floating-point computation that every node continues. A node
//! knows which number must come next, so a lost, doubled or reordered token is noticed where it happens; the value at
//! the end is computed again by the manager, so a token that was silently changed is noticed too.

pub mod manager;
pub mod node;
#[cfg(test)]
mod tests;
pub mod walk;
pub mod wire;
