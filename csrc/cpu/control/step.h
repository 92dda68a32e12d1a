// What becomes of an ended step. Twin: rsd_kernels/end_step/twin.py.

#ifndef RSD_CPU_CONTROL_STEP_H_
#define RSD_CPU_CONTROL_STEP_H_

#include "slots.h"

// The words of a record that say what happened to a step.
struct Decision {
    int32_t kind;    // RecordKind
    int32_t source;  // Role
    float reward;    // NaN: unscored
    int32_t finish;  // Finish
};

constexpr float UNSCORED = __builtin_nanf("");

// Appends what the log lacks of the step committed..length.
void publish(const RsdSlots& s, int32_t slot, const Decision& decision);

// The chance to keep a step of this reward: the paper's Table 1. It is 0 for a NaN.
double accept_probability(int32_t kind, float a, float b, float reward);

// The draw on the step of a slot: in [0, 1), with 24 random bits.
double accept_draw(const RsdSlots& s, int32_t slot);

#endif  // RSD_CPU_CONTROL_STEP_H_
