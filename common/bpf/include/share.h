/* What Python is to know of this program's types. */
#pragma once

/* Tell a type that no map, variable or global function has: clang leaves others out of the BTF. */
#define SHARE_TYPE(name, type) type *const volatile shared_##name = 0
