//! The loop of a simulated machine: which task goes next is drawn, and time jumps where nothing can run.

use super::Sim;
use crate::core::Core;
use crate::run::{Config, Error};
use std::rc::Rc;

impl Core {
    /// A reactor of the simulated machine. Its ring stays idle.
    pub(crate) fn simulated(cfg: &Config, sim: Rc<Sim>) -> Result<Rc<Core>, Error> {
        let mut core = Core::new(cfg)?;
        core.sim = Some(sim);
        Ok(Rc::new(core))
    }

    /// As `run`.
    pub(crate) fn run_simulated(&self, sim: &Sim, mut root: impl FnMut() -> bool) -> Result<(), Error> {
        loop {
            self.take_inbox();
            self.fire_timers();
            let count = self.ready.borrow().len();
            if count == 0 {
                let next = self.timers.borrow().next();
                sim.jump(next.ok_or(Error::Stalled)?);
                continue;
            }
            let drawn = sim.below(count as u64) as usize;
            let next = self.ready.borrow_mut().swap_remove_back(drawn);
            if let Some(header) = next {
                header.start();
                if self.poll_one(&header, &mut root) {
                    return Ok(());
                }
            }
        }
    }
}
