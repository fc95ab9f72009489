//! Random bytes: the kernel's, or the seed's in a simulation.

use std::io;

/// Fills `out` with bytes that nobody can guess.
///
/// # Errors
/// As getrandom(2).
pub fn random(out: &mut [u8]) -> io::Result<()> {
    #[cfg(feature = "sim")]
    if let Some(sim) = crate::sim::current() {
        for piece in out.chunks_mut(8) {
            piece.copy_from_slice(&sim.random().to_le_bytes()[..piece.len()]);
        }
        return Ok(());
    }
    let mut at = 0;
    while at < out.len() {
        match rustix::rand::getrandom(&mut out[at..], rustix::rand::GetRandomFlags::empty()) {
            Ok(count) => at += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
