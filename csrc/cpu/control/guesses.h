// Guesses at what the target will write. Twin: rsd_kernels/guess/twin.py.

#ifndef RSD_CPU_CONTROL_GUESSES_H_
#define RSD_CPU_CONTROL_GUESSES_H_

#include "slots.h"

// What became of the guesses that a pass of the target read for a slot.
struct Verified {
    int32_t place;  // position of the last token sampled; K and V count up to there
    int32_t made;   // guesses that were read
    int32_t kept;   // how many of them are text now
    bool wrong;     // the next one was not what the target wrote
    bool goes_on;   // the guesses behind the text still fit it
};

// The draft's token for a slot in phase GUESS; the last one sends the slot to the target.
void add_guess(const RsdSlots& s, int32_t slot, int32_t token, int32_t num_ids);

// Counts the guesses that the target has read, and forgets those that its text contradicts.
void settle_guesses(const RsdSlots& s, int32_t slot, const Verified& found);

#endif  // RSD_CPU_CONTROL_GUESSES_H_
