# An overlay port of the checkout that it lies in: vcpkg install kvtrim --overlay-ports=<checkout>/packaging/vcpkg
# A port in a registry replaces the next line by vcpkg_from_github(... REF "v${VERSION}" SHA512 ...) of a release.
get_filename_component(SOURCE_PATH "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)

set(VCPKG_BUILD_TYPE release) # headers only
vcpkg_cmake_configure(
    SOURCE_PATH "${SOURCE_PATH}"
    OPTIONS
        -DKVTRIM_INSTALL=ON
        -DKVTRIM_BUILD_TESTS=OFF
        -DKVTRIM_BUILD_EXAMPLES=OFF
        -DKVTRIM_BUILD_C_API=OFF
)
vcpkg_cmake_install()
vcpkg_cmake_config_fixup(CONFIG_PATH share/cmake/kvtrim)
vcpkg_fixup_pkgconfig()
vcpkg_install_copyright(FILE_LIST "${SOURCE_PATH}/LICENSE")
