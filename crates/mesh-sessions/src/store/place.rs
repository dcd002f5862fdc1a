//! Where an event stands in the table of all events: one whole number, so that a session's events lie side by side.

/// Bits of the number of an event; the row of its session has the other 28.
const NUMBER_BITS: u32 = 35;

/// The most events of a session: more than a thousand a second for a year.
pub(super) const EVENTS_MAX: u64 = (1 << NUMBER_BITS) - 1;

/// The most sessions that a file ever had.
pub(super) const ROWS_MAX: i64 = (1 << (63 - NUMBER_BITS)) - 1;

/// The place of an event.
pub(super) fn place(row: i64, number: u64) -> i64 {
    let number = i64::try_from(number.min(EVENTS_MAX)).unwrap_or(0);
    (row << NUMBER_BITS) | number
}

/// The last place that an event of this session can have.
pub(super) fn end(row: i64) -> i64 {
    place(row, EVENTS_MAX)
}

/// The session's row in a place.
pub(super) fn row_of(place: i64) -> i64 {
    place >> NUMBER_BITS
}

/// The event's number in a place.
pub(super) fn number_of(place: i64) -> u64 {
    place.cast_unsigned() & EVENTS_MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_hold_row_and_number_in_order() {
        let extremes = [(1, 1), (1, EVENTS_MAX), (2, 0), (ROWS_MAX, EVENTS_MAX)];
        for (row, number) in extremes {
            assert_eq!((row_of(place(row, number)), number_of(place(row, number))), (row, number));
        }
        assert!(extremes.windows(2).all(|pair| place(pair[0].0, pair[0].1) < place(pair[1].0, pair[1].1)));
        assert!(end(ROWS_MAX) > 0);
    }
}
