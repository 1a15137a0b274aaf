// Binds this process to one processor, where the system can.
#pragma once

namespace llama2q {

bool bind_to_one_cpu();

}  // namespace llama2q
