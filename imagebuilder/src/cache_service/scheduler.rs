//! Decides which task is next. Each owner has a queue, and the queues take turns.

use std::collections::{HashMap, VecDeque};

/// The owner of a request: the number of a user of the host.
pub(super) type Owner = u32;

/// Queues of tasks, one per owner.
#[derive(Debug)]
pub(super) struct Scheduler<Task> {
    /// The owners with waiting tasks, in the order of their turns, and these tasks.
    waiting: VecDeque<(Owner, VecDeque<Task>)>,
    /// The number of running tasks of each owner.
    running: HashMap<Owner, usize>,
    running_max: usize,
    running_per_owner_max: usize,
}

impl<Task: PartialEq> Scheduler<Task> {
    /// Creates a scheduler for a number of workers. One owner can use all but one of them, so that another owner never
    /// waits for a long task of the first. With a single worker, the owners only take turns.
    pub(super) fn new(workers: usize) -> Self {
        Self {
            waiting: VecDeque::new(),
            running: HashMap::new(),
            running_max: workers,
            running_per_owner_max: workers.saturating_sub(1).max(1),
        }
    }

    /// Adds a task to its owner's queue, unless it is already there.
    pub(super) fn push(&mut self, owner: Owner, task: Task) {
        match self.waiting.iter_mut().find(|(known, _)| *known == owner) {
            Some((_, tasks)) if tasks.contains(&task) => {}
            Some((_, tasks)) => tasks.push_back(task),
            None => self.waiting.push_back((owner, VecDeque::from([task]))),
        }
    }

    /// Removes a task from all queues, because no client waits for it any more. Otherwise a client that connects, sends a
    /// request and disconnects again and again would make its queue longer while its workers are busy.
    pub(super) fn discard(&mut self, task: &Task) {
        for (_, tasks) in &mut self.waiting {
            tasks.retain(|waiting| waiting != task);
        }
        self.waiting.retain(|(_, tasks)| !tasks.is_empty());
    }

    /// Returns the next task, if a worker is free. Its owner's next turn is after all others.
    pub(super) fn next(&mut self) -> Option<(Owner, Task)> {
        if self.running.values().sum::<usize>() >= self.running_max {
            return None;
        }
        let may_run = |owner: &Owner| self.running.get(owner).copied().unwrap_or(0) < self.running_per_owner_max;
        let turn = self.waiting.iter().position(|(owner, _)| may_run(owner))?;
        let (owner, mut tasks) = self.waiting.remove(turn)?;
        let task = tasks.pop_front()?;
        if !tasks.is_empty() {
            self.waiting.push_back((owner, tasks));
        }
        *self.running.entry(owner).or_default() += 1;
        Some((owner, task))
    }

    /// Records that a task of the owner has ended.
    pub(super) fn finished(&mut self, owner: Owner) {
        if let Some(count) = self.running.get_mut(&owner) {
            *count -= 1;
            if *count == 0 {
                self.running.remove(&owner);
            }
        }
    }

    /// Returns whether no task is waiting or running.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_with_a_thousand_tasks_takes_turns_with_the_others() {
        let mut scheduler = Scheduler::new(1);
        (0..1000).for_each(|number| scheduler.push(1, number));
        scheduler.push(2, 5000);
        scheduler.push(3, 6000);
        let mut order = Vec::new();
        while let Some((owner, task)) = scheduler.next() {
            order.push(task);
            scheduler.finished(owner);
        }
        assert_eq!(order[..4], [0, 5000, 6000, 1]);
        assert_eq!(order.len(), 1002);
        assert!(scheduler.is_idle());
    }

    #[test]
    fn a_task_is_queued_once_for_each_owner_until_it_is_discarded() {
        let mut scheduler = Scheduler::new(3);
        for owner in [1, 1, 2] {
            scheduler.push(owner, 7);
        }
        scheduler.push(1, 8);
        scheduler.discard(&7);
        assert_eq!([scheduler.next(), scheduler.next()], [Some((1, 8)), None]);
        scheduler.finished(1);
        assert!(scheduler.is_idle());
    }

    #[test]
    fn one_worker_is_reserved_for_other_owners() {
        let mut scheduler = Scheduler::new(3);
        (0..9).for_each(|number| scheduler.push(1, number));
        assert_eq!([scheduler.next(), scheduler.next(), scheduler.next()], [Some((1, 0)), Some((1, 1)), None]);
        scheduler.push(2, 100);
        assert_eq!([scheduler.next(), scheduler.next()], [Some((2, 100)), None]);
        scheduler.finished(1);
        assert_eq!(scheduler.next(), Some((1, 2)));
    }
}
