//! Iterates over the distinct values of a stream that may not fit into memory.

/// Number of values in memory at once; twice as many while they are collected.
const WINDOW: usize = 1 << 20;

/// Calls `consume` once for each distinct value, in ascending order.
///
/// Memory is bounded: if there are too many distinct values, `produce` is called again for the next ones. It
/// must produce the same values each time.
pub(crate) fn each_distinct<T, E>(
    mut produce: impl FnMut(&mut dyn FnMut(T)) -> Result<(), E>,
    consume: impl FnMut(T) -> Result<(), E>,
) -> Result<(), E>
where
    T: Ord + Copy,
{
    each_distinct_in_windows(WINDOW, &mut produce, consume)
}

fn each_distinct_in_windows<T, E>(
    window: usize,
    mut produce: impl FnMut(&mut dyn FnMut(T)) -> Result<(), E>,
    mut consume: impl FnMut(T) -> Result<(), E>,
) -> Result<(), E>
where
    T: Ord + Copy,
{
    let mut done_to: Option<T> = None;
    loop {
        let mut values = Vec::new();
        let mut bound: Option<T> = None;
        let shrink = |values: &mut Vec<T>, bound: &mut Option<T>| {
            values.sort_unstable();
            values.dedup();
            if values.len() > window {
                values.truncate(window);
                *bound = values.last().copied();
            }
        };
        produce(&mut |value| {
            if done_to.is_some_and(|done| value <= done) || bound.is_some_and(|bound| value > bound) {
                return;
            }
            values.push(value);
            if values.len() == 2 * window {
                shrink(&mut values, &mut bound);
            }
        })?;
        shrink(&mut values, &mut bound);
        for value in values {
            consume(value)?;
        }
        match bound {
            None => return Ok(()),
            Some(bound) => done_to = Some(bound),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_distinct_value_is_consumed_once_in_order_for_any_window() {
        let values: Vec<u32> = (0..1000).map(|index| index * 7919 % 257).collect();
        for window in [1, 2, 3, 100, 256, 257, 258, 1000] {
            let mut seen = Vec::new();
            let produce = |put: &mut dyn FnMut(u32)| {
                values.iter().for_each(|value| put(*value));
                Ok::<_, ()>(())
            };
            each_distinct_in_windows(window, produce, |value| {
                seen.push(value);
                Ok(())
            })
            .unwrap();
            assert_eq!(seen, (0..257).collect::<Vec<_>>(), "window {window}");
        }
    }
}
