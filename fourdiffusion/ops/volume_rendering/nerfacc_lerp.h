// Included before nerfacc's kernels. They define lerp() in the global namespace, which C++20 has there, too, and torch
// needs C++20 since 2.14. What is included here keeps its name; theirs gets another one.
#include <torch/extension.h>

#include <cmath>
#define lerp nerfacc_lerp
