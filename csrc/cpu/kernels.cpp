// One instruction set's kernels. The build compiles this file once for each, with RSD_CPU_ISA
// naming it and the compiler's flags choosing the instructions.

#include "kernels.h"

#include "attention.h"
#include "draw.h"
#include "largest.h"
#include "product.h"
#include "quantise.h"
#include "rows.h"

#define RSD_TEXT_OF(name) #name
#define RSD_TEXT(name) RSD_TEXT_OF(name)
#define RSD_JOINED_OF(a, b) a##b
#define RSD_JOINED(a, b) RSD_JOINED_OF(a, b)

extern const Kernels RSD_JOINED(kernels_, RSD_CPU_ISA) = {RSD_TEXT(RSD_CPU_ISA),
                                                          GROUP_ROWS,
                                                          product,
                                                          embed,
                                                          norm,
                                                          silu_mul,
                                                          rope_write,
                                                          attend,
                                                          draw,
                                                          largest,
                                                          scale,
                                                          quantise};
